"""GuideGate: which waiting sequences may start, as far as their guides go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from trierarch.python_backend.errors import ServingError
from trierarch.python_backend.request import Guide, Request
from trierarch.python_backend.scheduling.queue import WaitingQueue
from trierarch.python_backend.sequence import Sequence


class Verdicts(Protocol):
    """What is known of guides; `guides.compiler` finds it out beside the steps."""

    @property
    def num_refusals(self) -> int:
        """Guides found not to be fit, since the start."""
        ...

    def want(self, guide: Guide) -> None:
        """Find out about a guide."""
        ...

    def is_ready(self, guide: Guide) -> bool:
        """Whether it is compiled."""
        ...

    def error(self, guide: Guide) -> ServingError | None:
        """Why it cannot be served."""
        ...


class GuideGate:
    """Passes over sequences whose guide is being compiled: others do not wait for a stranger's grammar."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self._seen: tuple[int, int] | None = None  # changes of the queue, and refusals

    def want(self, request: Request) -> None:
        """A request came."""
        if request.sampling.guide is not None:
            self._verdicts.want(request.sampling.guide)

    def refused(self, waiting: WaitingQueue) -> list[tuple[Request, ServingError]]:
        """Requests of `waiting` that no guide will come for, and why."""
        seen = waiting.num_changes, self._verdicts.num_refusals
        if seen == self._seen or not self._verdicts.num_refusals:
            return []
        self._seen = seen
        guided = {s.request.request_id: s.request for s in waiting if s.request.sampling.guide is not None}
        errors = ((request, self._error(request)) for request in guided.values())
        return [(request, error) for request, error in errors if error is not None]

    def startable(self, waiting: Iterable[Sequence]) -> Iterator[Sequence]:
        """Those of `waiting` that may start, each judged when it is its turn."""
        return (sequence for sequence in waiting if self._is_ready(sequence.request))

    def _is_ready(self, request: Request) -> bool:
        guide = request.sampling.guide
        return guide is None or self._verdicts.is_ready(guide)

    def _error(self, request: Request) -> ServingError | None:
        guide = request.sampling.guide
        return None if guide is None else self._verdicts.error(guide)
