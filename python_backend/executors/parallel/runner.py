"""ParallelRunner: rank 0 of an engine that is split over several processes. It plans nothing, but it draws: the others only
compute, so that what is drawn is drawn as by a runner that is alone.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.errors import ConfigError, EngineError, ResourceError
from trierarch.builder.manifest import WEIGHTS_NAME, EngineManifest
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter, Arranged
from trierarch.python_backend.executors.drawing import Drawing
from trierarch.python_backend.executors.following import Follower, Following, StepRows
from trierarch.python_backend.executors.offload.share import Share
from trierarch.python_backend.executors.parallel.crew import Crew
from trierarch.python_backend.executors.parallel.crew_carrier import CrewCarrier
from trierarch.python_backend.executors.parallel.devices import rank_devices
from trierarch.python_backend.executors.parallel.messages import (
    Arrange,
    Drop,
    Identity,
    Join,
    Joined,
    Loaded,
    Logits,
    Open,
    OpenTiers,
)
from trierarch.python_backend.executors.parallel.rank_model import RankModel
from trierarch.python_backend.executors.parallel.shard import Shard, shards
from trierarch.python_backend.executors.parallel.sharded_adapter import shard_adapter
from trierarch.python_backend.executors.parallel.sharded_adapters import ShardedAdapter
from trierarch.python_backend.executors.parallel.step_wire import AdapterRef, StepWire
from trierarch.python_backend.executors.pooling import open_pooler
from trierarch.python_backend.executors.sampling.uniforms import Uniforms
from trierarch.python_backend.executors.torch.device import prepare_cpu
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.sampler import TorchSampler
from trierarch.python_backend.executors.weight_table import REBUILD, unreadable
from trierarch.python_backend.scheduling.plan import Plan, StepOutput

logger = logging.getLogger(__name__)

STALL_SECONDS: Final = 300.0
"""That a step may take. Beyond that a rank must hang."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What takes memory here."""

    model: RankModel
    drawing: Drawing[torch.Tensor]


class ParallelRunner:
    """Implements LeadRunner."""

    def __init__(
        self,
        engine: Path,
        manifest: EngineManifest,
        uniforms: Uniforms | None = None,
        num_blocks: int | None = None,
        taps: tuple[int, ...] = (),
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """Load an engine that is fit for this machine, and start the other ranks; the arguments as TorchRunner's.

        Raises:
            EngineError: the weights are missing, corrupt or not what the manifest says, or cannot be split as it says.
            ResourceError: there are too few GPUs, a rank could not be started, or the KV cache does not fit.
        """
        own_shards = _shards(manifest, taps)
        devices = rank_devices(manifest, len(own_shards))
        self._shards = own_shards
        self._block_size = manifest.kv_cache.block_size
        self._numbers = itertools.count()
        self._dropped: deque[int] = deque()
        self._num_threads = torch.get_num_threads()
        self.device = str(devices[0])
        # NCCL meets as late as at the first sum.
        self._meeting = tempfile.TemporaryDirectory(prefix="trierarch-ranks-")
        self._crew = Crew(len(own_shards), stall_seconds)
        try:
            with torch.inference_mode():
                model = self._open(engine, manifest, devices, taps)
                self.num_blocks = self._join(model, num_blocks, stall_seconds)
        except BaseException:
            self._end()
            raise
        self._crew.listen(lambda _: model.group.abort())
        self._sampler = TorchSampler(manifest.architecture.vocab_size, manifest.tokens.eos, devices[0], uniforms)
        self._loaded: _Loaded | None = _Loaded(
            model, Drawing(self._logits, self._sampler, open_pooler(engine, manifest))
        )
        logger.info("%s on %s, eagerly: %s", manifest.name, ", ".join(map(str, devices)), manifest.dtype)

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Have `on_loss` told why once a rank is lost, on another thread; also while nothing runs."""
        self._crew.listen(on_loss)

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of ranks 1 and on."""
        return self._crew.pids

    @property
    def kv_arrays(self) -> KvArrays:
        """Rank 0's share of the keys and values of all blocks."""
        return self._model.kv_arrays

    def open_carrier(self, share: Share, beside: Sequence[torch.Tensor] = ()) -> CrewCarrier:
        """What copies blocks on all ranks, and what `beside` has of them on this one; each rank has so large a `share`.

        Raises:
            ConfigError: files cannot be where they are wanted.
            ResourceError: there is no room for a share, or a rank was lost.
        """
        return CrewCarrier(self._crew, self._model.open_tiers(share, beside), OpenTiers(share))

    def arrange(self, tensors: AdapterTensors) -> Arranged:
        """See Runner.arrange."""
        number = next(self._numbers)
        parts = [shard_adapter(tensors, shard) for shard in self._shards]
        with torch.inference_mode():
            self._model.arrange(number, parts[0])
        adapter = ShardedAdapter(number, sum(part.num_bytes for part in parts))
        weakref.finalize(adapter, self._dropped.append, number)
        self._crew.arrange([Arrange(number, part) for part in parts[1:]])
        return adapter

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepOutput:
        """See Runner.run."""
        self._sampler.forget(plan.finished_sequence_ids)
        if not plan.scheduled:
            return StepOutput({})
        assert self._loaded is not None, "the runner is closed"
        self._drop()
        with self._crew.step():
            return self._loaded.drawing.run(plan, self._compute)

    def lead(self, follower: Follower[torch.Tensor]) -> None:
        """See LeadRunner.lead."""
        assert self._loaded is not None, "the runner is closed"
        self._loaded.drawing.following = Following(follower)

    def close(self) -> None:
        """See Runner.close."""
        self._loaded = None
        self._end()

    def _end(self) -> None:
        self._crew.close()
        self._meeting.cleanup()
        torch.set_num_threads(self._num_threads)

    @property
    def _model(self) -> RankModel:
        assert self._loaded is not None, "the runner is closed"
        return self._loaded.model

    def _open(
        self, engine: Path, manifest: EngineManifest, devices: Sequence[torch.device], taps: tuple[int, ...]
    ) -> RankModel:
        """Load all ranks at the same time."""
        try:
            identity = Identity.of(engine)
        except OSError as error:
            raise unreadable(engine / WEIGHTS_NAME, error) from error
        if devices[0].type == "cpu":
            prepare_cpu()
            torch.set_num_threads(max(1, torch.get_num_threads() // len(devices)))
        num_threads = torch.get_num_threads()
        self._crew.tell_each(
            [
                Open(index, engine, manifest, str(device), num_threads, identity)
                for index, device in enumerate(devices)
                if index
            ]
        )
        return RankModel(engine, manifest, self._shards[0], devices[0], taps)

    def _join(self, model: RankModel, num_blocks: int | None, stall_seconds: float) -> int:
        """Let all ranks meet, over as many blocks as the one with the least room has; how many."""
        room = [loaded.num_blocks for loaded in self._crew.answers(Loaded)]
        num_blocks = num_blocks or min(model.plan_num_blocks(), *room)
        # Whether a step hangs is for the crew to say; torch only must not say so before.
        how = Join(num_blocks, Path(self._meeting.name) / "meeting", 2 * stall_seconds)
        self._crew.tell(how)
        try:
            model.join(how)
        except RuntimeError as error:
            raise ResourceError(str(self._crew.lost_by(error))) from error
        self.other_block_bytes = tuple(joined.block_bytes for joined in self._crew.answers(Joined))
        """Of their shares of a block, on ranks 1 and on."""
        return num_blocks

    def _compute(self, plan: Plan) -> StepRows[torch.Tensor]:
        wire = StepWire.of(plan, self._block_size)
        self._crew.tell(wire)
        with self._crew.together():
            step = self._model.compute(wire)
        items = [plan.scheduled[item.sequence.sequence_id] for item in step.items]
        return StepRows(items, step.first_rows, step.hidden, step.tapped)

    def _logits(self, hidden: torch.Tensor, adapters: Sequence[ActiveAdapter | None]) -> torch.Tensor:
        refs = tuple(AdapterRef.of(adapter) for adapter in adapters)
        self._crew.tell(Logits(len(hidden), refs))
        with self._crew.together():
            logits = self._model.logits(hidden.contiguous(), refs)
            assert logits is not None
        return logits

    def _drop(self) -> None:
        """Let go, everywhere, of adapters that nobody has any more. They are only noted when that happens: it may happen
        anywhere, while something else is being said."""
        numbers = tuple(self._dropped.popleft() for _ in range(len(self._dropped)))
        if numbers:
            self._crew.tell(Drop(numbers))
            for number in numbers:
                self._model.drop(number)


def _shards(manifest: EngineManifest, taps: tuple[int, ...]) -> tuple[Shard, ...]:
    try:
        own = shards(manifest)
    except ConfigError as error:
        raise EngineError(f"{manifest.name} cannot be split: {error}; {REBUILD}") from error
    if taps and own[0].mapping.pipeline_parallel_size > 1:
        raise EngineError(
            f"{manifest.name}: its head reads hidden states of layers that other stages have; rebuild it without "
            "--pipeline-parallel-size, or without the head"
        )
    return own
