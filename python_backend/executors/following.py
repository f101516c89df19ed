"""Following: whoever reads a step's hidden states once its tokens are drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from trierarch.python_backend.scheduling.plan import ScheduledSequence, SequenceOutput

logger = logging.getLogger(__name__)

A = TypeVar("A", bound=Any)


@dataclass(frozen=True, slots=True)
class StepRows(Generic[A]):
    """A step's hidden states and whose they are."""

    items: Sequence[ScheduledSequence]
    first_rows: Sequence[int]
    """Row of each item's first token in `hidden`, [num_sequences]; the others follow. Rows behind them may be nobody's."""
    hidden: A  # (num_rows, hidden), before the last norm
    tapped: A | None = None  # (num_rows, taps * hidden), tap after tap; None where there are no taps


class Follower(Protocol[A]):
    """Reads along."""

    def follow(self, step: StepRows[A], outputs: Mapping[int, SequenceOutput]) -> None:
        """A step ran, and drew `outputs` (sequence_id -> what was drawn, for each of its items).

        The sequences are as they were when it was planned. Where a draft could not be drawn for, the same tokens come
        again in another step, with other drafts; what holds is what comes last.
        """
        ...


class Following(Generic[A]):
    """Shows steps to a follower that may fail: that is logged, and costs its guesses and nothing else."""

    def __init__(self, follower: Follower[A]) -> None:
        self._follower = follower
        self._num_failures = 0

    def follow(self, step: StepRows[A], outputs: Mapping[int, SequenceOutput]) -> None:
        """See Follower.follow."""
        try:
            self._follower.follow(step, outputs)
        except Exception:
            self._num_failures += 1
            if self._num_failures & (self._num_failures - 1) == 0:  # each step may fail: the 1st, 2nd, 4th, ... is told
                logger.exception("a drafter could not follow a step (%d times so far)", self._num_failures)
