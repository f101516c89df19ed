"""LaunchedStep: a step that the device computes and draws for while the host goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.drawing import DrawnRows
from trierarch.python_backend.executors.following import StepRows
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.executors.torch.drawn_tokens import DrawnTokens
from trierarch.python_backend.executors.torch.host_copy import HostCopy
from trierarch.python_backend.executors.torch.sampler import TorchSampler
from trierarch.python_backend.scheduling.plan import SequenceOutput, StepOutput
from trierarch.python_backend.sequence import Context, Unheard

Logits = Callable[[torch.Tensor, Sequence[ActiveAdapter | None]], torch.Tensor]


class LaunchedStep:
    """Implements Launched."""

    def __init__(self, step: StepRows[torch.Tensor], logits: Logits, sampler: TorchSampler) -> None:
        """Draw for a step that is under way, as Drawing would. None of its items has drafts, or wants more than a token."""
        self._items = tuple(step.items)
        rows = DrawnRows.of(step)
        self._sequence_ids = [item.sequence.sequence_id for item in rows.items]
        self._contexts: list[Context] = [Unheard(one.sequence) if one.is_late else one.sequence for one in rows.items]
        verdicts = torch.empty((3, 0), dtype=torch.int64, device=step.hidden.device)
        if rows.items:
            hidden = step.hidden
            if len(rows.rows) < len(hidden):
                hidden = hidden.index_select(0, on_device(torch.tensor(rows.rows), hidden.device))
            verdicts = sampler.verdicts(logits(hidden, rows.adapters), self._contexts)
        self._sampler = sampler
        self.drawn = DrawnTokens(verdicts[0], {one: place for place, one in enumerate(self._sequence_ids)})
        """What the next step goes on from."""
        self._copy = HostCopy(verdicts)

    def collect(self) -> StepOutput:
        """See Launched.collect."""
        told = self._sampler.told(self._copy.wait(), self._contexts)
        outputs = {item.sequence.sequence_id: SequenceOutput() for item in self._items}
        return StepOutput(outputs | dict(zip(self._sequence_ids, told, strict=True)))
