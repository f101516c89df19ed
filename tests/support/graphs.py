"""A model whose decode steps are static, recorded in any way, beside the same model without."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from support.random_engine import random_weights, write_weights
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.drawing import Drawing
from trierarch.python_backend.executors.following import StepRows
from trierarch.python_backend.executors.torch.captured_step import ReplayedStep
from trierarch.python_backend.executors.torch.drawn_tokens import DrawnTokens
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.graphed_model import GraphedModel, Record
from trierarch.python_backend.executors.torch.input_batch import num_queries_of
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.launched_step import LaunchedStep
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.sampler import TorchSampler
from trierarch.python_backend.executors.torch.weights import load_weights
from trierarch.python_backend.scheduling.plan import Plan, StepOutput

NUM_BLOCKS = 64


@dataclass
class StaticRunner:
    """As much of a Runner as a Stepper wants; `steps` are those that were computed, in turn."""

    model: EagerModel
    kv: KvArrays
    graphs: GraphedModel | None
    sampler: TorchSampler
    num_blocks: int = NUM_BLOCKS
    steps: list[StepRows[torch.Tensor]] = field(default_factory=list)
    drawn: DrawnTokens | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        manifest: EngineManifest,
        operators: Operators,
        device: torch.device,
        record: Record | None = ReplayedStep,
        taps: tuple[int, ...] = (),
        pool: Any = None,
        max_queries: int = 5,
    ) -> StaticRunner:
        """record: None runs every step eagerly."""
        architecture = manifest.architecture
        write_weights(folder, random_weights(architecture, manifest.dtype))
        with torch.inference_mode(), mock.patch.object(Operators, "best", return_value=operators):
            model = EagerModel(manifest, load_weights(folder, manifest, device), device, taps)
            kv = KvArrays(NUM_BLOCKS, architecture, manifest.kv_cache, device)
            graphs = None
            if record is not None:
                layout = model.static_layout(kv, manifest.limits.max_seq_len, max_queries)
                assert layout is not None
                graphs = GraphedModel(model, kv, layout, device, record, pool)
        return cls(model, kv, graphs, TorchSampler(architecture.vocab_size, manifest.tokens.eos, device))

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepOutput:
        self.sampler.forget(plan.finished_sequence_ids)
        if not plan.scheduled:
            return StepOutput({})
        return Drawing(self.model.logits, self.sampler).run(plan, self._compute)

    @torch.inference_mode()
    def launch(self, plan: Plan) -> LaunchedStep:
        self.sampler.forget(plan.finished_sequence_ids)
        step = LaunchedStep(self._compute(plan, self.drawn), self.model.logits, self.sampler)
        self.drawn = step.drawn
        return step

    def _compute(self, plan: Plan, drawn: DrawnTokens | None = None) -> StepRows[torch.Tensor]:
        step = self.model.compute(plan, self.kv, drawn) if self.graphs is None else self.graphs.compute(plan, drawn)
        self.steps.append(step)
        return step

    @torch.inference_mode()
    def arrange(self, tensors: Any) -> Any:
        return self.model.arrange(tensors)

    def close(self) -> None:
        """Nothing to give back."""

    def hidden(self) -> list[dict[int, torch.Tensor]]:
        """Of each step, sequence -> the hidden states of its tokens."""
        return [self.rows_of(step) for step in self.steps]

    @staticmethod
    def rows_of(step: StepRows[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Sequence -> the hidden states of its tokens."""
        return {
            item.sequence.sequence_id: step.hidden[first : first + num_queries_of(item)]
            for item, first in zip(step.items, step.first_rows, strict=True)
        }
