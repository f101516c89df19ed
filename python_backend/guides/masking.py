"""Masking: what the guided sequences of a step may draw, asked of a process that no step waits for.

A sequence whose mask is late is left out of the step and looked at again in the next; its neighbours go on. One that the
process is busy with for far too long, or dies of, ends with an error, and the others' grammars are followed anew from
what they have said.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, ServingError
from trierarch.python_backend.guides.process import GuideProcess
from trierarch.python_backend.guides.protocol import Asks, MaskAsk, MaskReply, Vocabulary
from trierarch.python_backend.request import Guide
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence

logger = logging.getLogger(__name__)

PATIENCE: Final = 0.02
"""Seconds that a step waits for masks that it is the first to ask for."""
MOST_SECONDS: Final = 3.0
"""That the process may be busy with one mask."""


@dataclass(slots=True)
class GuidedStep:
    """What guides make of a plan."""

    masks: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    """sequence_id -> as ScheduledSequence.masks. Drafts beyond them leave the grammar; a guided sequence without is late."""
    over: list[int] = field(default_factory=list)
    """Ids of sequences whose output is complete."""
    refused: dict[int, ServingError] = field(default_factory=dict)
    """sequence_id -> why it cannot go on."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of any sequence."""
        return not (self.masks or self.over or self.refused)


@dataclass(slots=True)
class _Followed:
    """A sequence as the process has it."""

    num_accepted: int = 0
    serial: int | None = None
    """Of the ask that has no reply yet."""
    is_late: bool = False
    """Whether a step has gone without that reply."""


class Masking:
    """Owns the process that makes masks. One thread calls it, but for `start` and `prepare`."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        end_ids: tuple[int, ...],
        on_refusal: Callable[[Guide, ServingError], None],
        patience: float = PATIENCE,
        seconds: float = MOST_SECONDS,
    ) -> None:
        """Start nothing yet. `end_ids` are the engine's, for requests that name none.

        on_refusal: told of guides that cost the process its life.
        """
        self._vocabulary = vocabulary
        self._end_ids = end_ids
        self._on_refusal = on_refusal
        self._patience = patience
        self._seconds = seconds
        self._lock = threading.Lock()  # over which process it is
        self._process: GuideProcess | None = None
        self._is_closed = False
        self._serials = count()
        self._followed: dict[int, _Followed] = {}  # sequence_id -> how far
        self._forgotten: list[int] = []  # ids that the process has yet to hear have gone
        self._asked: dict[int, tuple[int, Guide]] = {}  # serial -> sequence_id and guide, in the order of replies
        self._busy_since = 0.0  # with the first of them

    def start(self) -> None:
        """See GuideUser.start."""
        try:
            self._open()
        except (EOFError, OSError):
            logger.exception("the process for guides could not be started")

    def prepare(self, guide: Guide, timeout: float) -> None:
        """See GuideUser.prepare: the first mask need not wait for it then."""
        try:
            self._open().compile(guide, timeout)
        except (EOFError, OSError, TimeoutError):
            logger.warning("a guide could not be prepared; its first mask will take longer")

    def masks(self, plan: Plan) -> GuidedStep | None:
        """What the guided sequences that draw may draw, and behind which of their drafts; None where there are none."""
        items = {
            item.sequence.sequence_id: item
            for item in plan.scheduled
            if item.samples and item.sequence.request.sampling.guide is not None
        }
        step = GuidedStep()
        try:
            self._forget(plan.finished_sequence_ids)
            if items:
                self._run(step, items, is_alone=len(items) == len(plan.scheduled))
        except (EOFError, OSError, TimeoutError) as error:
            self._lose(step, error, items)
        return step if items else None

    def close(self) -> None:
        """End the process. Idempotent."""
        with self._lock:
            process, self._process, self._is_closed = self._process, None, True
        if process is not None:
            process.close()

    def _run(self, step: GuidedStep, items: dict[int, ScheduledSequence], is_alone: bool) -> None:
        process = self._open()
        if process.is_up(self._patience if is_alone else 0.0):
            self._ask(process, items.values())
            self._collect(step, process, items, is_alone)
        for sequence_id in items:
            if (followed := self._followed.get(sequence_id)) is not None:
                followed.is_late = followed.serial is not None
        self._check_busy()

    def _ask(self, process: GuideProcess, items: Iterable[ScheduledSequence]) -> None:
        asks = []
        for item in items:
            sequence, sampling = item.sequence, item.sequence.request.sampling
            followed = self._followed.setdefault(sequence.sequence_id, _Followed())
            if followed.serial is not None:
                continue
            assert sampling.guide is not None
            end_ids = self._end_ids if sampling.end_ids is None else sampling.end_ids
            followed.serial, followed.is_late = next(self._serials), False
            asks.append(
                MaskAsk(
                    serial=followed.serial,
                    sequence_id=sequence.sequence_id,
                    guide=sampling.guide,
                    end_ids=end_ids,
                    num_accepted=followed.num_accepted,
                    token_ids=tuple(sequence.token_ids[sequence.num_prompt_tokens + followed.num_accepted :]),
                    draft_token_ids=item.draft_token_ids,
                    # Beams rank by what their end costs, too; until min_tokens it is not to be had.
                    draws_end=sampling.edited_logprobs
                    and bool(end_ids)
                    and sequence.num_output_tokens >= sampling.min_tokens,
                )
            )
            followed.num_accepted = sequence.num_output_tokens
        if not asks:
            return
        process.ask(Asks(tuple(self._forgotten), tuple(asks)))
        self._forgotten.clear()
        if not self._asked:
            self._busy_since = time.monotonic()
        self._asked |= {ask.serial: (ask.sequence_id, ask.guide) for ask in asks}

    def _collect(
        self, step: GuidedStep, process: GuideProcess, items: dict[int, ScheduledSequence], is_alone: bool
    ) -> None:
        """Take what is there; wait for what was asked now, and if nothing else is to be done, for anything."""
        deadline = time.monotonic() + self._patience
        timeout = 0.0
        while True:
            for reply in process.replies(timeout):
                self._take(step, reply, items)
            pending = [followed for i in items if (followed := self._followed[i]).serial is not None]
            is_waiting = any(not followed.is_late for followed in pending) or (is_alone and step.is_empty)
            timeout = deadline - time.monotonic()
            if not pending or not is_waiting or timeout <= 0.0:
                return

    def _take(self, step: GuidedStep, reply: MaskReply, items: Collection[int]) -> None:
        sequence_id, _ = self._asked.pop(reply.serial)
        self._busy_since = time.monotonic()
        followed = self._followed.get(sequence_id)
        if followed is None or followed.serial != reply.serial:
            return  # it ended, or was preempted, and maybe came back
        followed.serial = None
        if sequence_id not in items:
            return  # nobody asks in this step
        if reply.is_over:
            step.over.append(sequence_id)
        elif not reply.masks:
            step.refused[sequence_id] = ExecutorFailed("the output left its grammar")
        else:
            # What comes late speaks of drafts that nobody may guess any more.
            step.masks[sequence_id] = reply.masks[:1] if followed.is_late else reply.masks

    def _check_busy(self) -> None:
        """Raise TimeoutError if the process has been busy with one mask for too long."""
        if self._asked and time.monotonic() - self._busy_since > self._seconds:
            raise TimeoutError

    def _lose(self, step: GuidedStep, error: Exception, items: dict[int, ScheduledSequence]) -> None:
        """Give the process up, and the guide it was busy with; the sequences of others start anew."""
        logger.warning("the process for guides was lost (%s)", type(error).__name__)
        if self._asked:
            _, guide = next(iter(self._asked.values()))
            remedy = (
                f"its grammar takes longer than {self._seconds:g} s or too much memory for a token; make it simpler"
            )
            refusal = InvalidRequest("guide", guide.text, remedy)
            self._on_refusal(guide, refusal)
            for sequence_id, item in items.items():
                if item.sequence.request.sampling.guide == guide:
                    step.refused[sequence_id] = refusal
        self._asked.clear()
        self._followed.clear()
        self._forgotten.clear()
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.close()

    def _open(self) -> GuideProcess:
        with self._lock:
            if self._is_closed:
                raise EOFError
            if self._process is None:
                self._process = GuideProcess(self._vocabulary)
            return self._process

    def _forget(self, sequence_ids: Collection[int]) -> None:
        """These are followed no more. Raise TimeoutError if the process is busy with one of them and late already."""
        for sequence_id in sequence_ids:
            followed = self._followed.pop(sequence_id, None)
            if followed is None:
                continue
            self._forgotten.append(sequence_id)
            if followed.is_late and followed.serial == next(iter(self._asked)):
                raise TimeoutError
