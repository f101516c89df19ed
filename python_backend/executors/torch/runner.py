"""TorchRunner: plan → tensors → model → drawn tokens, by torch's operators and kernels of ours, on the CPU or a CUDA device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.adapters.active_adapter import Arranged
from trierarch.python_backend.executors.drawing import Drawing
from trierarch.python_backend.executors.following import Follower, Following, StepRows
from trierarch.python_backend.executors.kv_budget import plan_num_blocks
from trierarch.python_backend.executors.pooling import open_pooler
from trierarch.python_backend.executors.sampling.uniforms import Uniforms
from trierarch.python_backend.executors.torch.device import default_device, prepare_cpu
from trierarch.python_backend.executors.torch.drawn_tokens import DrawnTokens
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.graphed_model import GraphedModel, graphs_of
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.launched_step import LaunchedStep
from trierarch.python_backend.executors.torch.sampler import TorchSampler
from trierarch.python_backend.executors.torch.step_memory import room_for_kv
from trierarch.python_backend.executors.torch.warm_up import WarmUp
from trierarch.python_backend.executors.torch.weights import load_weights
from trierarch.python_backend.scheduling.plan import Plan, StepOutput

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What takes memory."""

    model: EagerModel
    kv: KvArrays
    drawing: Drawing[torch.Tensor]
    graphs: GraphedModel | None
    """None runs every step eagerly."""

    def compute(self, plan: Plan, drawn: DrawnTokens | None = None) -> StepRows[torch.Tensor]:
        """See EagerModel.compute."""
        if self.graphs is not None:
            return self.graphs.compute(plan, drawn)
        return self.model.compute(plan, self.kv, drawn)


class TorchRunner:
    """Owns the weights, the KV arrays and the sampler. Implements the Runner protocol, and LaunchingRunner."""

    def __init__(
        self,
        engine: Path,
        manifest: EngineManifest,
        device: torch.device | None = None,
        uniforms: Uniforms | None = None,
        num_blocks: int | None = None,
        taps: tuple[int, ...] = (),
    ) -> None:
        """Load an engine that is fit for this machine; `device` None takes CUDA where there is one.

        uniforms: what sampling draws with; None has a secret of its own. num_blocks: of the KV cache; None takes what the
        engine's budget buys. taps: as `Head.taps`, of the head that will follow.

        Raises:
            EngineError: the weights are missing, corrupt or not what the manifest says.
            ResourceError: the KV cache does not fit, or fits no sequence of `max_seq_len`.
        """
        architecture = manifest.architecture
        device = default_device(manifest.requires.device) if device is None else device
        if device.type == "cpu":
            prepare_cpu()
            if manifest.kernels is None:
                logger.warning("%s has no compiled kernels: it runs eagerly, several times slower", manifest.name)
        self._sampler = TorchSampler(architecture.vocab_size, manifest.tokens.eos, device, uniforms)
        with torch.inference_mode():
            model = EagerModel(manifest, load_weights(engine, manifest, device), device, taps)
            drawing = Drawing(model.logits, self._sampler, open_pooler(engine, manifest))
            self.num_blocks = num_blocks or plan_num_blocks(
                manifest, room_for_kv(manifest, model, drawing, device), str(device)
            )
            kv = KvArrays(self.num_blocks, architecture, manifest.kv_cache, device)
            graphs = graphs_of(model, kv, manifest, device)
        self.device = str(device)
        self._drawn: DrawnTokens | None = None
        """Of the step launched last."""
        self._loaded: _Loaded | None = _Loaded(model, kv, drawing, graphs)
        logger.info("%s on %s: %d threads, %s", manifest.name, device, torch.get_num_threads(), manifest.dtype)
        steps = "eagerly" if graphs is None else "decode steps as CUDA graphs"
        logger.info("%s: %s, %s", manifest.name, model.operators, steps)
        if device.type == "cuda":
            WarmUp(manifest, model, kv, graphs).run(self.run)

    @torch.inference_mode()
    def arrange(self, tensors: AdapterTensors) -> Arranged:
        """See Runner.arrange."""
        loaded = self._loaded
        assert loaded is not None, "the runner is closed"
        return loaded.model.arrange(tensors)

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepOutput:
        """See Runner.run."""
        self._sampler.forget(plan.finished_sequence_ids)
        if not plan.scheduled:
            return StepOutput({})
        loaded = self._loaded
        assert loaded is not None, "the runner is closed"
        return loaded.drawing.run(plan, loaded.compute)

    @torch.inference_mode()
    def launch(self, plan: Plan) -> LaunchedStep:
        """See LaunchingRunner.launch. Nobody may follow."""
        self._sampler.forget(plan.finished_sequence_ids)
        loaded = self._loaded
        assert loaded is not None, "the runner is closed"
        assert loaded.drawing.following is None, "a head reads what was drawn"
        step = LaunchedStep(loaded.compute(plan, self._drawn), loaded.model.logits, self._sampler)
        self._drawn = step.drawn
        return step

    def lead(self, follower: Follower[torch.Tensor]) -> None:
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
        self._loaded = self._drawn = None
