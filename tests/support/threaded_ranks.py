"""ThreadedRanks: the ranks of a split engine as threads of this process, which say to each other what processes would."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.manifest import EngineManifest, Parallel
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter, Arranged
from trierarch.python_backend.executors.drawing import Drawing
from trierarch.python_backend.executors.following import Follower, Following, StepRows
from trierarch.python_backend.executors.parallel.messages import Join
from trierarch.python_backend.executors.parallel.rank_model import RankModel
from trierarch.python_backend.executors.parallel.shard import shards
from trierarch.python_backend.executors.parallel.sharded_adapter import shard_adapter
from trierarch.python_backend.executors.parallel.sharded_adapters import ShardedAdapter
from trierarch.python_backend.executors.parallel.step_wire import AdapterRef, StepWire
from trierarch.python_backend.executors.torch.sampler import TorchSampler
from trierarch.python_backend.scheduling.plan import Plan, StepOutput

CPU = torch.device("cpu")

R = TypeVar("R")


def split(manifest: EngineManifest, tensor: int = 1, pipeline: int = 1) -> EngineManifest:
    """The manifest of the same engine over so many ranks."""
    parallel = Parallel(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    return manifest.model_copy(update={"parallel": parallel})


class ThreadedRanks:
    """Implements Runner."""

    def __init__(self, engine: Path, manifest: EngineManifest, taps: tuple[int, ...] = ()) -> None:
        """`manifest` says over how many ranks. taps: as `Head.taps`, read by rank 0."""
        self._shards = shards(manifest)
        self._block_size = manifest.kv_cache.block_size
        self._pool = ThreadPoolExecutor(len(self._shards))
        self.models = [
            RankModel(engine, manifest, shard, CPU, () if shard.rank.index else taps) for shard in self._shards
        ]
        self.num_blocks = min(model.plan_num_blocks() for model in self.models)
        how = Join(self.num_blocks, Path(tempfile.mkdtemp(dir=engine)) / "meeting", 30.0)
        self.on_all(lambda model: model.join(how))
        sampler = TorchSampler(manifest.architecture.vocab_size, manifest.tokens.eos, CPU)
        self._drawing = Drawing(self._logits, sampler)
        self._num_arranged = 0

    def arrange(self, tensors: AdapterTensors) -> Arranged:
        """See Runner.arrange."""
        self._num_arranged += 1
        parts = [shard_adapter(tensors, shard) for shard in self._shards]
        for model, part in zip(self.models, parts, strict=True):
            model.arrange(self._num_arranged, part)
        return ShardedAdapter(self._num_arranged, sum(part.num_bytes for part in parts))

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepOutput:
        """See Runner.run."""
        return self._drawing.run(plan, self._compute) if plan.scheduled else StepOutput({})

    def lead(self, follower: Follower[torch.Tensor]) -> None:
        """See LeadRunner.lead."""
        self._drawing.following = Following(follower)

    def close(self) -> None:
        """See Runner.close."""
        self._pool.shutdown()

    def _compute(self, plan: Plan) -> StepRows[torch.Tensor]:
        wire = StepWire.of(plan, self._block_size)
        first, *_ = self.on_all(lambda model: model.compute(wire))
        items = [plan.scheduled[item.sequence.sequence_id] for item in first.items]
        return StepRows(items, first.first_rows, first.hidden, first.tapped)

    def _logits(self, hidden: torch.Tensor, adapters: Sequence[ActiveAdapter | None]) -> torch.Tensor:
        refs = tuple(AdapterRef.of(adapter) for adapter in adapters)
        first = self.models[0]

        def logits(model: RankModel) -> torch.Tensor | None:
            return model.logits(hidden if model is first else model.empty_hidden(len(hidden)), refs)

        told, *nothing = self.on_all(logits)
        assert told is not None
        assert not any(other is not None for other in nothing)
        return told

    def on_all(self, do: Callable[[RankModel], R]) -> list[R]:
        """Of every rank at the same time."""

        def quietly(model: RankModel) -> R:
            with torch.inference_mode():
                return do(model)

        return list(self._pool.map(quietly, self.models))
