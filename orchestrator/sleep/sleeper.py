"""Sleeper: one server that is asleep unless somebody asks; carries out what its lifecycle decides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from trierarch.builder.errors import TrierarchError
from trierarch.orchestrator.gateway.upstream import Endpoints, Unavailable
from trierarch.orchestrator.sleep.figures import Figures
from trierarch.orchestrator.sleep.lifecycle import Deed, Lifecycle, Orders
from trierarch.orchestrator.sleep.room import Tenant
from trierarch.orchestrator.sleep.sleepable import Sleepable
from trierarch.orchestrator.sleep.vigil import Vigil

logger = logging.getLogger(__name__)

DEATH_GRACE_SECONDS: Final = 1.0
"""From a connection's end until a server that broke it by dying is known to be dead, at most."""


@dataclass(frozen=True, slots=True)
class _Lease:
    endpoints: Endpoints
    wake: int


class Sleeper:
    """Everything happens in one event loop; what blocks, in threads."""

    def __init__(
        self,
        server: Sleepable,
        tenant: Tenant,
        decide: Callable[[], None],
        figures: Figures,
        say: Callable[[str], None],
    ) -> None:
        """decide: to be called whenever something has happened; it hands orders to `obey`."""
        self.tenant, self.server = tenant, server
        self._decide, self._figures, self._say = decide, figures, say
        self._waiting: dict[int, asyncio.Future[_Lease]] = {}
        self._endpoints: Endpoints | None = None
        """Of the server that is awake."""
        self._vigil: Vigil | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def lifecycle(self) -> Lifecycle:
        """What decides."""
        return self.tenant.lifecycle

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered."""
        return self.lifecycle.is_ready(_now())

    @property
    def awake(self) -> Endpoints | None:
        """Where the server listens if it is awake. Without a lease it may be gone any moment."""
        return self._endpoints

    @asynccontextmanager
    async def lease(self, patience: float | None = None) -> AsyncIterator[Endpoints]:
        """As Upstream has it; `patience`: seconds to wait in place of the usual. Who leaves by an exception was not answered."""
        lease = await self._admission(patience)
        is_answered = False
        try:
            yield lease.endpoints
            is_answered = True
        finally:
            self._leave(lease, is_answered)

    async def has_died(self, endpoints: Endpoints) -> bool:
        """Whether the server that listened there is no more; waits a moment for word of it if that is not known."""
        deadline = _now() + DEATH_GRACE_SECONDS
        while not self.is_dead(endpoints):
            if _now() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def is_dead(self, endpoints: Endpoints) -> bool:
        """The same as far as it is known now: what such a server answers is not to be trusted."""
        return endpoints is not self._endpoints or self._vigil is None or self._vigil.is_over

    def cut(self) -> None:
        """End open requests, by killing the server that has them."""
        if self.lifecycle.num_leases:
            self._end_at_once("its open requests were cut")

    async def _admission(self, patience: float | None) -> _Lease:
        if self._vigil is not None:
            self._vigil.heed()  # or who comes back from a dead server would be sent to it again
        arrived = _now()
        try:
            request = self.lifecycle.arrive(arrived, patience)
        except Unavailable:
            self._figures.refused()
            raise
        waiting: asyncio.Future[_Lease] = asyncio.get_running_loop().create_future()
        self._waiting[request] = waiting
        self._decide()
        is_held = not waiting.done()
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._leave(waiting.result(), is_answered=False)
            else:
                self.lifecycle.abandon(request)
                self._decide()
            raise
        finally:
            del self._waiting[request]
            if is_held:
                self._figures.held(_now() - arrived)

    def _leave(self, lease: _Lease, is_answered: bool) -> None:
        self.lifecycle.leave(_now(), lease.wake, is_answered)
        self._decide()

    def obey(self, orders: Orders) -> None:
        """Carry out what was decided."""
        for request, refusal in orders.refused.items():
            self._figures.refused()
            if not self._waiting[request].done():
                self._waiting[request].set_exception(refusal)
        for request in orders.admitted:
            assert self._endpoints is not None
            lease = _Lease(self._endpoints, self.lifecycle.wakes)
            if self._waiting[request].done():  # cancelled, and its task has not run since
                self.lifecycle.leave(_now(), lease.wake, is_answered=False)
            else:
                self._waiting[request].set_result(lease)
        if orders.deed is Deed.START:
            self._do(self._wake())
        elif orders.deed is Deed.STOP:
            self._rest()
            self._do(self._sleep())

    def _do(self, deed: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(deed)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake(self) -> None:
        self._figures.starts()
        started = _now()
        try:
            pids = await asyncio.to_thread(self.server.start)
            self._vigil = Vigil(pids, self._die)
        except (TrierarchError, ProcessLookupError) as error:
            await self._fall(error)
            return
        except Exception as error:
            logger.exception("a server's start failed for a reason of ours")
            await self._fall(error)
            return
        self._endpoints = self.server.endpoints
        self.lifecycle.woke(_now())
        self._figures.woke(_now() - started)
        self._decide()

    async def _fall(self, error: Exception) -> None:
        await asyncio.to_thread(self.server.kill)
        self._figures.failed()
        self._figures.ended()
        self.lifecycle.fell(_now(), str(error))
        if self.lifecycle.wakes and self.is_ready:
            self._say(f"the server did not wake: {error}")
        self._decide()

    def _rest(self) -> None:
        """Nobody asks it any more."""
        self._endpoints = None
        if self._vigil is not None:
            self._vigil.close()
            self._vigil = None

    async def _sleep(self) -> None:
        def stop() -> int:
            num_bytes = self.server.num_resident_bytes()
            self.server.stop()
            return num_bytes

        await self._end(asyncio.to_thread(stop))

    def _die(self, pid: int) -> None:
        self._figures.died()
        self._say(f"a process of the server died ({pid}); it is brought back when it is wanted")
        self._end_at_once(f"process {pid} ended by itself")

    def _end_at_once(self, reason: str) -> None:
        self._rest()
        self.lifecycle.died(_now(), reason)
        self._do(self._end(asyncio.to_thread(self.server.kill)))

    async def _end(self, deed: Awaitable[int | None]) -> None:
        try:
            num_bytes = await deed
            self.tenant.num_bytes = num_bytes or self.tenant.num_bytes
        except Exception:
            logger.exception("a server did not end in good order")
            await asyncio.to_thread(self.server.kill)
        self._figures.ended()
        self.lifecycle.stopped()
        self._decide()


def _now() -> float:
    return time.monotonic()
