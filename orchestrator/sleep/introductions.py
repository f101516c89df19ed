"""Introductions: what each server says it is while it is awake for the first time, so that nobody is woken to be listed."""

from __future__ import annotations

from trierarch.orchestrator.gateway.catalogue import CANNOT_SAY
from trierarch.orchestrator.gateway.description import Description, describe
from trierarch.orchestrator.gateway.gateway_config import DEFAULT_MODEL
from trierarch.orchestrator.gateway.source import Source
from trierarch.orchestrator.gateway.triton import Triton
from trierarch.orchestrator.gateway.upstream import Endpoints
from trierarch.orchestrator.sleep.front import Front
from trierarch.orchestrator.sleep.front_door import FrontDoor


class Introductions:
    """Of the servers behind one front."""

    def __init__(self) -> None:
        self._heard: dict[str, Description] = {}  # server -> what it said

    async def greet(self, name: str, endpoints: Endpoints) -> None:
        """Ask the server that listens there. A repository of other models says nothing."""
        triton = Triton()
        try:
            self._heard[name] = await describe(triton, endpoints, DEFAULT_MODEL)
        except CANNOT_SAY:
            pass
        finally:
            await triton.close()

    def sources(self, front: Front) -> list[Source]:
        """The servers as a gateway's engines. One alone is called as it calls itself, several by their names in the house."""
        residents = front.house.residents.values()
        is_alone = len(residents) == 1
        return [
            Source(
                label=resident.name,
                upstream=FrontDoor(resident, Endpoints.of(front.endpoints, "" if is_alone else resident.name)),
                names=() if is_alone else (resident.name,),
                description=self._heard.get(resident.name),
            )
            for resident in residents
        ]
