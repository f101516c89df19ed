"""House: the servers that clients may mean, by name, and what is known of them without waking them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trierarch.orchestrator.gateway.upstream import ENGINE_HEADER
from trierarch.orchestrator.sleep.figures import Figures
from trierarch.orchestrator.sleep.kept_bytes import KeptBytes
from trierarch.orchestrator.sleep.sleeper import Sleeper

FORGETFUL: Final = (
    "shared memory is not registered with a server that sleeps: it would be forgotten; send the tensors in the request, "
    "or serve without --idle-timeout"
)


class UnknownEngine(Exception):
    """Nobody here has that name."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One server."""

    name: str
    sleeper: Sleeper
    figures: Figures
    models: Mapping[str, frozenset[str]]
    """Model -> versions that are ready whenever it is awake."""

    def is_model_ready(self, model: str, version: str = "") -> bool:
        """Whether a request to it would be answered, now or after a wake."""
        versions = self.models.get(model, frozenset())
        return self.sleeper.is_ready and bool(versions) and (not version or version in versions)


class House:
    """One or more."""

    def __init__(self, residents: list[Resident]) -> None:
        """The first one is meant by whoever names none."""
        self.residents = {resident.name: resident for resident in residents}
        self.kept = KeptBytes()
        self._first = residents[0]

    def find(self, name: str | None) -> Resident:
        """Who is meant.

        Raises:
            UnknownEngine: nobody.
        """
        if not name:
            return self._first
        if name not in self.residents:
            raise UnknownEngine(f"{ENGINE_HEADER} is {name!r}: served are {', '.join(self.residents)}")
        return self.residents[name]

    @property
    def is_ready(self) -> bool:
        """Whether all would answer."""
        return all(resident.sleeper.is_ready for resident in self.residents.values())
