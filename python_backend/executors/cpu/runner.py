"""CpuRunner: plan → arrays → compiled kernels → drawn tokens."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.adapters.active_adapter import Arranged
from trierarch.python_backend.executors import machine
from trierarch.python_backend.executors.cpu.kv_arrays import KvArrays
from trierarch.python_backend.executors.cpu.model import CompiledModel
from trierarch.python_backend.executors.cpu.sampler import CpuSampler
from trierarch.python_backend.executors.drawing import Drawing
from trierarch.python_backend.executors.following import Follower, Following
from trierarch.python_backend.executors.kv_budget import plan_num_blocks
from trierarch.python_backend.executors.pooling import open_pooler
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.executors.sampling.uniforms import Uniforms
from trierarch.python_backend.scheduling.plan import Plan, StepOutput

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What takes memory."""

    model: CompiledModel
    kv: KvArrays
    drawing: Drawing[Floats]


class CpuRunner:
    """Owns the weights, the KV arrays and the sampler. Implements the Runner protocol."""

    def __init__(
        self,
        engine: Path,
        manifest: EngineManifest,
        uniforms: Uniforms | None = None,
        num_blocks: int | None = None,
        taps: tuple[int, ...] = (),
    ) -> None:
        """Load an engine that has kernels and is fit for this machine.

        uniforms: what sampling draws with; None has a secret of its own. num_blocks: of the KV cache; None takes what the
        engine's budget buys. taps: as `Head.taps`, of the head that will follow.

        Raises:
            EngineError: the weights or the kernels are missing, corrupt or not what the manifest says.
            ResourceError: the KV cache does not fit, or fits no sequence of `max_seq_len`.
        """
        model = CompiledModel(engine, manifest, taps)
        self.num_blocks = num_blocks or plan_num_blocks(manifest, machine.free_memory())
        kv = KvArrays(self.num_blocks, manifest.architecture, manifest.kv_cache)
        self.device = "cpu"
        self._sampler = CpuSampler(manifest.tokens.eos, uniforms)
        self._loaded: _Loaded | None = _Loaded(
            model, kv, Drawing(model.logits, self._sampler, open_pooler(engine, manifest))
        )
        logger.info("%s on cpu, compiled: %d threads, %s", manifest.name, model.num_threads, manifest.dtype)

    def arrange(self, tensors: AdapterTensors) -> Arranged:
        """See Runner.arrange."""
        loaded = self._loaded
        assert loaded is not None, "the runner is closed"
        return loaded.model.arrange(tensors)

    def run(self, plan: Plan) -> StepOutput:
        """See Runner.run."""
        self._sampler.forget(plan.finished_sequence_ids)
        if not plan.scheduled:
            return StepOutput({})
        assert self._loaded is not None, "the runner is closed"
        model, kv = self._loaded.model, self._loaded.kv
        return self._loaded.drawing.run(plan, lambda part: model.compute(part, kv))

    def lead(self, follower: Follower[Floats]) -> None:
        """See LeadRunner.lead."""
        assert self._loaded is not None, "the runner is closed"
        self._loaded.drawing.following = Following(follower)

    @property
    def kv_arrays(self) -> KvArrays:
        """The keys and values of all blocks."""
        assert self._loaded is not None, "the runner is closed"
        return self._loaded.kv

    def close(self) -> None:
        """See Runner.close."""
        self._loaded = None
