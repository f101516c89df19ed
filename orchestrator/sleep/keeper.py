"""Keeper: sleepers that share this machine's memory, and the clock that makes them go to sleep."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping

from trierarch.orchestrator.sleep.figures import Figures, Page
from trierarch.orchestrator.sleep.lifecycle import Lifecycle, Phase
from trierarch.orchestrator.sleep.rest import Rest
from trierarch.orchestrator.sleep.room import Room, Tenant
from trierarch.orchestrator.sleep.sleepable import Sleepable
from trierarch.orchestrator.sleep.sleeper import Sleeper


class Keeper:
    """Asks Room what is to be done whenever something happened or is due. For one event loop, which must run."""

    def __init__(
        self,
        servers: Mapping[str, tuple[Sleepable, int]],
        rest: Rest,
        say: Callable[[str], None],
        budget: int | None = None,
    ) -> None:
        """servers: by name, each with the bytes of memory that it is thought to take; budget: as Room has it."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.page = Page()
        self.sleepers: dict[str, Sleeper] = {}
        self.figures: dict[str, Figures] = {}
        tenants = {name: Tenant(Lifecycle(rest), num_bytes) for name, (_, num_bytes) in servers.items()}
        self._room = Room(tenants, budget)
        for name, (server, _) in servers.items():
            figures = Figures(tenants[name].lifecycle, time.monotonic)
            self.page.add(name, figures)
            self.figures[name] = figures
            self.sleepers[name] = Sleeper(server, tenants[name], self._decide, figures, say)

    async def close(self, timeout: float) -> bool:
        """Refuse what is new, let what is open finish within `timeout` seconds, stop every server. Whether all finished."""
        for sleeper in self.sleepers.values():
            sleeper.lifecycle.close()
            if sleeper.lifecycle.phase is Phase.WAKING:
                sleeper.server.interrupt()
        self._decide()
        try:
            async with asyncio.timeout(timeout):
                await self._idle()
            is_finished = True
        except TimeoutError:
            is_finished = False
            for sleeper in self.sleepers.values():
                sleeper.cut()
        while not all(sleeper.lifecycle.is_down_for_good for sleeper in self.sleepers.values()):
            await self._change()
        return is_finished

    async def _idle(self) -> None:
        while any(sleeper.lifecycle.num_leases for sleeper in self.sleepers.values()):
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _decide(self) -> None:
        now = time.monotonic()
        for name, orders in self._room.decide(now).items():
            self.sleepers[name].obey(orders)
        self._changed.set()
        if self._timer is not None:
            self._timer.cancel()
        moment = self._room.next_change(now)
        self._timer = None
        if moment is not None and not math.isinf(moment):
            self._timer = self._loop.call_later(moment - now, self._decide)
