"""GraphedModel: an EagerModel whose decode steps are recorded the first time one of their size comes (static_step.py)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import torch

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.following import StepRows
from trierarch.python_backend.executors.torch.captured_step import CapturedStep, GraphPool
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.executors.torch.drawn_tokens import DrawnTokens, LateTokens
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.static_step import CPU, StaticStep, StepLayout, StepSize, key_of
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence

logger = logging.getLogger(__name__)

MAX_GRAPHS: Final = 192
"""Of all sizes and draft lengths; steps of others run eagerly."""


class Recorded(Protocol):
    """A step that was recorded."""

    def replay(self, batch: InputBatch) -> list[torch.Tensor]:
        """See CapturedStep.replay."""
        ...


Record = Callable[[StaticStep, Any], Recorded]
Items = Sequence[ScheduledSequence]


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
        """record: makes a Recorded of a step. pool: as CapturedStep takes it."""
        self._model = model
        self._kv = kv
        self.layout = layout
        self._device = device
        self._record = record
        self._pool = pool
        self._recorded: dict[tuple[object, ...], Recorded] = {}
        self._is_broken = False
        self._is_full = False

    @property
    def is_recording(self) -> bool:
        """Whether steps of another size would be recorded, rather than run eagerly."""
        return not self._is_broken and not self._is_full and len(self._recorded) < MAX_GRAPHS

    @property
    def num_recorded(self) -> int:
        """Steps, each of a size of its own."""
        return len(self._recorded)

    def compute(self, plan: Plan, drawn: DrawnTokens | None = None) -> StepRows[torch.Tensor]:
        """See EagerModel.compute."""
        items = plan.scheduled
        size = None if self._is_broken else self.layout.size(items)
        states = None if size is None else self._replayed(items, size, drawn)
        if size is None or states is None:
            return self._model.compute(plan, self._kv, drawn)
        # The next replay overwrites them, and a head reads along for longer.
        *tapped, hidden = (state[: len(items) * size.num_queries].clone() for state in states)
        first_rows = tuple(range(0, len(hidden), size.num_queries))
        return StepRows(items, first_rows, hidden, torch.cat(tapped, 1) if tapped else None)

    def _replayed(self, items: Items, size: StepSize, drawn: DrawnTokens | None) -> Sequence[torch.Tensor] | None:
        """Hidden states with padding among them and behind; None where this step is to run eagerly."""
        batch = self.layout.padded(items, size, CPU)
        key = key_of(batch)
        recorded = self._recorded.get(key)
        if recorded is None and not self.is_recording:
            return None
        fresh = batch.fresh_blocks[batch.fresh_blocks != self._kv.padding_block]
        if len(fresh):
            self._kv.clear(on_device(fresh, self._device))
        if recorded is None:
            recorded = self._new(items, size)
            if recorded is None:
                return None
            self._recorded[key] = recorded
        return recorded.replay(replace(batch, late=LateTokens.of(batch.items, batch.first_rows, drawn)))

    def _new(self, items: Items, size: StepSize) -> Recorded | None:
        try:
            step = StaticStep(self.layout.padded(items, size, self._device), self._kv, self._model.decode)
            return self._record(step, self._pool)
        except torch.OutOfMemoryError:
            self._is_full = True
            logger.warning(
                "no memory to record a decode step of %d: those of sizes that were not recorded yet run eagerly; rebuild the "
                "engine with a smaller KV cache, or free some memory",
                size.num_sequences,
            )
            return None
        except RuntimeError as error:
            self._is_broken = True
            reason = str(error).partition("\n")[0]
            logger.warning("decode steps run eagerly: one of %d could not be captured (%s)", size.num_sequences, reason)
            return None


def graphs_of(model: EagerModel, kv: KvArrays, manifest: EngineManifest, device: torch.device) -> GraphedModel | None:
    """Graphs where the device has them and the model's operators can be captured."""
    if device.type != "cuda" or (manifest.architecture.moe is not None and manifest.quantization is not None):
        return None  # which experts of codes are to run is asked of the device
    layout = model.static_layout(kv, manifest.limits.max_seq_len, max_queries_of(manifest))
    return None if layout is None else GraphedModel(model, kv, layout, device, pool=GraphPool())


def max_queries_of(manifest: EngineManifest) -> int:
    """Of a sequence in a step that is recorded: a token and its drafts."""
    # A draft model, whose manifest does not say that it is one, catches up with two tokens behind a guess that was all right.
    return 1 + (1 if manifest.speculation is None else manifest.speculation.max_draft_tokens)
