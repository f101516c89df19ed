"""FrontDoor: the front as the upstream of a gateway, whatever thread and event loop that runs in."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trierarch.orchestrator.gateway.upstream import Endpoints, Unavailable
from trierarch.orchestrator.sleep.house import Resident


class FrontDoor:
    """Implements Upstream. Requests go through the front's own doors, which hold them and ask again what died unanswered."""

    def __init__(self, resident: Resident, endpoints: Endpoints) -> None:
        """endpoints: of the front, with the name by which `resident` is meant there."""
        self._resident, self._endpoints = resident, endpoints

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Endpoints]:
        """See Upstream. The doors keep the server awake for as long as they answer, so nothing is to be kept here."""
        lifecycle = self._resident.sleeper.lifecycle
        now = time.monotonic()
        if not lifecycle.is_ready(now):
            raise Unavailable("the server is down", lifecycle.seconds_to_wake(now))
        yield self._endpoints

    @property
    def is_ready(self) -> bool:
        """See Upstream."""
        return self._resident.sleeper.lifecycle.is_ready(time.monotonic())

    @property
    def awake(self) -> Endpoints | None:
        """See Upstream: the server itself, past the doors, to which everything that comes through them is use."""
        return self._resident.sleeper.awake

    @property
    def metrics(self) -> str | None:
        """See Upstream: the front's page, which wakes nobody."""
        return self._endpoints.metrics
