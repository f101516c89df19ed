"""Who has gone away: finds cancelled requests by asking Triton, and those that a `stop` request names."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Protocol

from trierarch.python_backend.errors import InvalidRequest


class Cancellable(Protocol):
    """A request being answered."""

    @property
    def client_id(self) -> str:
        """The id the client gave; empty where it gave none."""
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

    def __len__(self) -> int:
        """Requests being answered."""
        with self._lock:
            return sum(len(requests) for requests in self._by_client_id.values())

    def add(self, request: Cancellable) -> None:
        """Watch a request."""
        with self._lock:
            self._by_client_id[request.client_id].add(request)

    def discard(self, request: Cancellable) -> None:
        """Forget a request. Idempotent."""
        with self._lock:
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
        """Cancel the requests whose client has gone. Asks Triton once for each, some 0.2 ms."""
        with self._lock:
            requests = [request for requests in self._by_client_id.values() for request in requests]
        for request in requests:
            if request.is_cancelled():
                request.cancel()
