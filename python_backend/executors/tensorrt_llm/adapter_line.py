"""AdapterLine: sequences that wait for their adapters to be on disk and find a slot.

As many different adapters run at once as the engine has slots, so that the library never has to refuse one because all
that it holds are in use. Who comes with an adapter that runs overtakes one that finds no place, but only for so long:
then nobody behind it starts, and sooner or later enough of those that run have ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.pool import AdapterPool, Readiness


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    adapter: Adapter
    place: asyncio.Future[ActiveAdapter]
    since: float


class AdapterLine:
    """The executor's thread alone calls it."""

    def __init__(self, pool: AdapterPool, patience_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`patience_seconds`: for how long one that finds no place is overtaken."""
        self._pool = pool
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._waiting: list[_Waiter] = []

    async def acquire(self, adapter: Adapter) -> ActiveAdapter:
        """What a sequence runs with until it is released; waits until there is room for it.

        Raises:
            UnusableAdapter: it cannot be read, or TensorRT-LLM does not serve it.
            ExecutorFailed: it could not be written.
        """
        waiter = _Waiter(adapter, asyncio.get_running_loop().create_future(), self._clock())
        self._waiting.append(waiter)
        self._pool.cache.want(adapter)
        self.advance()
        try:
            return await waiter.place
        except asyncio.CancelledError:
            if not waiter.place.cancelled() and waiter.place.exception() is None:
                self.release(waiter.place.result())  # It was given a place, and then told to end.
            raise
        finally:
            self.advance()

    def release(self, active: ActiveAdapter) -> None:
        """A sequence has stopped running with it."""
        self._pool.release(active)
        self.advance()

    def advance(self) -> None:
        """Let start who can; call it when an adapter was loaded, or could not be."""
        self._waiting = [waiter for waiter in self._waiting if not waiter.place.done()]
        for waiter in self._waiting:
            error = self._pool.error(waiter.adapter)
            if error is not None:
                waiter.place.set_exception(error)
            elif (active := self._pool.acquire(waiter.adapter)) is not None:
                waiter.place.set_result(active)
            elif self._clock() - waiter.since >= self._patience_seconds:
                if self._pool.readiness(waiter.adapter) is Readiness.LOADING:
                    self._pool.cache.claim(waiter.adapter.digest)
                break
        self._waiting = [waiter for waiter in self._waiting if not waiter.place.done()]
        adapters = {waiter.adapter.digest: waiter.adapter for waiter in self._waiting}
        self._pool.prefer(list(adapters.values())[: self._pool.slots.num_slots])
