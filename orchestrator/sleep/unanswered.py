"""Asking the server that is awake, and the next one if that dies before it has answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from trierarch.orchestrator.gateway.upstream import Endpoints
from trierarch.orchestrator.sleep.figures import Figures
from trierarch.orchestrator.sleep.sleeper import Sleeper

TRIES: Final = 3
"""A request that kills every server it meets must not go on for ever."""


class Unanswered(Exception):
    """The server broke off before anything was answered: asking again repeats nothing that anybody has seen."""


async def ask(sleeper: Sleeper, figures: Figures, send: Callable[[Endpoints], Awaitable[None]]) -> None:
    """Call `send` while holding a lease, again on the next server each time that one dies unanswered.

    Raises:
        Unavailable: there is no server.
        Unanswered: the last try ended so, or the server lives and broke off all the same.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            async with sleeper.lease() as endpoints:
                return await send(endpoints)
        except Unanswered:
            if not tries_left or not await sleeper.has_died(endpoints):
                raise
            figures.retried()
