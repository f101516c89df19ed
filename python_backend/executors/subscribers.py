"""Subscribers: who hears of the requests that live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trierarch.python_backend.executors.executor import Sink
from trierarch.python_backend.request import Request, TokenDelta


@dataclass(slots=True)
class _Subscriber:
    sink: Sink
    num_unfinished: int
    """Sequences that still run."""


class Subscribers:
    """The sinks of requests, each until the last delta of the last sequence."""

    def __init__(self) -> None:
        """Nobody yet."""
        self._by_request: dict[str, _Subscriber] = {}

    def __len__(self) -> int:
        return len(self._by_request)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_request)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_request

    def add(self, request: Request, sink: Sink) -> None:
        """A request was taken in."""
        self._by_request[request.request_id] = _Subscriber(sink, request.sampling.n)

    def take(self, deltas: Iterable[TokenDelta]) -> tuple[list[tuple[Sink, TokenDelta]], list[str]]:
        """Whom each delta is for, and ids of the requests that end with them."""
        deliveries, ended = [], []
        for delta in deltas:
            subscriber = self._by_request[delta.request_id]
            deliveries.append((subscriber.sink, delta))
            subscriber.num_unfinished -= delta.finish_reason is not None
            if not subscriber.num_unfinished:
                del self._by_request[delta.request_id]
                ended.append(delta.request_id)
        return deliveries, ended
