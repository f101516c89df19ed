"""The Triton behind the gateway, as the gateway sees it: an address that is good while a lease on it is held."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where one Triton listens, each as `host:port`."""

    grpc: str
    http: str
    metrics: str


class Upstream(Protocol):
    """One Triton, and whoever keeps it awake. For one event loop."""

    def lease(self) -> AbstractAsyncContextManager[Endpoints]:
        """Keep Triton up for one request, from before it is sent until its last byte is answered.

        Entering waits, for a bounded time, while Triton starts; leaving never waits.

        Raises, on entering:
            Unavailable: Triton cannot be had now; it says when to come back, and why.
        """
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered: Triton is up, or asleep and able to wake."""
        ...


class Unavailable(Exception):
    """No Triton for this request, now."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        """Seconds."""


class AlwaysOn:
    """A Triton that somebody else keeps up."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    def lease(self) -> AbstractAsyncContextManager[Endpoints]:
        """See Upstream."""
        return nullcontext(self._endpoints)

    @property
    def is_ready(self) -> bool:
        """See Upstream."""
        return True
