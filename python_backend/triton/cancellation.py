"""Who has gone away: finds cancelled requests by asking Triton, and those that a `stop` request names."""

from __future__ import annotations

import threading
from collections import defaultdict
from itertools import islice
from typing import Final, Protocol

from trierarch.python_backend.errors import InvalidRequest

MAX_WAITING_ASKED: Final = 8
"""Requests without a token that one look asks about: looking costs the same however many wait."""


class Cancellable(Protocol):
    """A request being answered."""

    @property
    def client_id(self) -> str:
        """The id the client gave; empty where it gave none."""
        ...

    @property
    def has_begun(self) -> bool:
        """Whether anything was computed for it that its client hears of."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client has gone or cancelled."""
        ...

    def cancel(self) -> None:
        """Stop the work; the request ends with an error."""
        ...

    def stop(self) -> None:
        """Stop the work because the client asked to; the request ends with an empty response."""
        ...


class OpenRequests:
    """Every request being answered. Requests leave when their last response is out."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._by_client_id: dict[str, set[Cancellable]] = defaultdict(set)
        self._turns: dict[Cancellable, None] = {}  # all of them; those asked about last stand last

    def __len__(self) -> int:
        """Requests being answered."""
        with self._lock:
            return len(self._turns)

    def add(self, request: Cancellable) -> None:
        """Watch a request."""
        with self._lock:
            self._by_client_id[request.client_id].add(request)
            self._turns[request] = None

    def discard(self, request: Cancellable) -> None:
        """Forget a request. Idempotent."""
        with self._lock:
            self._turns.pop(request, None)
            requests = self._by_client_id.get(request.client_id, set())
            requests.discard(request)
            if not requests:
                self._by_client_id.pop(request.client_id, None)

    def stop(self, client_id: str) -> None:
        """Stop every request of that id; an unknown or finished one is no error.

        Raises:
            InvalidRequest: the id is empty.
        """
        if not client_id:
            raise InvalidRequest("stop", True, "a request id must be provided for request cancellation")
        with self._lock:
            requests = list(self._by_client_id.get(client_id, ()))
        for request in requests:
            request.stop()

    def cancel_abandoned(self) -> None:
        """Cancel requests whose client has gone. Asks Triton about each that has begun, and about those that wait in turn.

        A question is a round trip of some 0.2 ms. A request that waits costs nothing, so it is known to be abandoned
        some looks later.
        """
        with self._lock:
            asked = [request for request in self._turns if request.has_begun]
            waiting = list(islice((one for one in self._turns if not one.has_begun), MAX_WAITING_ASKED))
            for request in waiting:
                del self._turns[request]
                self._turns[request] = None
        for request in (*asked, *waiting):
            if request.is_cancelled():
                request.cancel()
