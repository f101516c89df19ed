"""GraphedModel: an EagerModel whose decode steps are recorded the first time one of their size comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.following import StepRows
from trierarch.python_backend.executors.torch.captured_step import CapturedStep
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.input_batch import InputBatch, num_queries_of
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.static_step import CPU, StaticStep, StepLayout, is_static, key_of, size_of
from trierarch.python_backend.scheduling.plan import Plan

logger = logging.getLogger(__name__)

MAX_GRAPHS: Final = 192
"""Of all sizes and draft lengths; steps of others run eagerly."""


class Recorded(Protocol):
    """A step that was recorded."""

    def replay(self, batch: InputBatch) -> list[torch.Tensor]:
        """See CapturedStep.replay."""
        ...


Record = Callable[[StaticStep, Any], Recorded]


class GraphedModel:
    """Computes a step's tokens over one set of KV arrays."""

    def __init__(
        self,
        model: EagerModel,
        kv: KvArrays,
        layout: StepLayout,
        device: torch.device,
        record: Record = CapturedStep,
        pool: Any = None,
    ) -> None:
        """record, pool: as CapturedStep takes them."""
        self._model = model
        self._kv = kv
        self._layout = layout
        self._device = device
        self._record = record
        self._pool = pool
        self._recorded: dict[tuple[object, ...], Recorded] = {}
        self._is_broken = False

    @property
    def num_recorded(self) -> int:
        """Steps, each of a size of its own."""
        return len(self._recorded)

    def compute(self, plan: Plan) -> StepRows[torch.Tensor]:
        """See EagerModel.compute."""
        states = self._replayed(plan) if is_static(plan) and not self._is_broken else None
        if states is None:
            return self._model.compute(plan, self._kv)
        items = plan.scheduled
        num_queries = num_queries_of(items[0])
        # The next replay overwrites them, and a head reads along for longer.
        *tapped, hidden = (state[: len(items) * num_queries].clone() for state in states)
        first_rows = tuple(range(0, len(hidden), num_queries))
        return StepRows(items, first_rows, hidden, torch.cat(tapped, 1) if tapped else None)

    def _replayed(self, plan: Plan) -> Sequence[torch.Tensor] | None:
        """Hidden states with padding behind; None where this step is to run eagerly."""
        batch = self._layout.padded(plan.scheduled, CPU)
        key = key_of(batch)
        recorded = self._recorded.get(key)
        if recorded is None and len(self._recorded) >= MAX_GRAPHS:
            return None
        fresh = batch.fresh_blocks[batch.fresh_blocks != self._kv.padding_block]
        if len(fresh):
            self._kv.clear(on_device(fresh, self._device))
        if recorded is None:
            recorded = self._new(plan)
            if recorded is None:
                return None
            self._recorded[key] = recorded
        return recorded.replay(batch)

    def _new(self, plan: Plan) -> Recorded | None:
        step = StaticStep(self._layout.padded(plan.scheduled, self._device), self._kv, self._model.decode)
        try:
            return self._record(step, self._pool)
        except RuntimeError as error:
            self._is_broken = True
            reason = str(error).partition("\n")[0]
            logger.warning(
                "decode steps run eagerly: one of %d could not be captured (%s)", size_of(len(plan.scheduled)), reason
            )
            return None


def graphs_of(model: EagerModel, kv: KvArrays, manifest: EngineManifest, device: torch.device) -> GraphedModel | None:
    """Graphs where the device has them and the model's operators can be captured."""
    attention = model.operators.static_attention
    if device.type != "cuda" or attention is None or manifest.architecture.moe is not None:
        return None
    layout = model.static_layout(kv, attention, manifest.limits.max_seq_len)
    return GraphedModel(model, kv, layout, device, pool=torch.cuda.graph_pool_handle())
