"""Catalogue: the models that clients may name: each engine, and each adapter of one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from trierarch.orchestrator.gateway.engine import Engine
from trierarch.orchestrator.gateway.errors import ApiError, invalid, unknown_model
from trierarch.orchestrator.gateway.upstream import Unavailable
from trierarch.python_backend.triton.status import RelayedError

CANNOT_SAY: Final = (Unavailable, RelayedError, ApiError)
"""Why an engine may not be asked what it is."""


class Catalogue:
    """Engines by what clients call them. For one event loop.

    An adapter that several engines have is called by the engine's label, a slash and its own name.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        """One or more, each with a label of its own; the first is meant by Triton's name for its model."""
        self.engines = tuple(engines)
        self._by_label = {engine.label: engine for engine in engines}

    async def find(self, name: str) -> tuple[Engine, str]:
        """Whom a model's name means, and with which adapter; empty is the base model.

        What is known is found without asking anybody, so that nobody is woken, or kept awake, for the sake of another. A
        name that nobody knows wakes the one engine that it can be of, and none of several.

        Raises:
            ApiError: nothing of that name is served, or several are.
            Unavailable, RelayedError: nobody says that it is theirs, and somebody cannot be asked.
        """
        for engine in self.engines:
            if engine.is_called(name):
                return engine, ""
        for engine in self.engines:
            if engine.model == name:
                return engine, ""
        engines, adapter = self._meant(name)
        told: Sequence[str | Exception | None] = [engine.known_adapter(adapter) for engine in engines]
        if all(held is None for held in told):
            is_alone = len(engines) == 1
            told = await asyncio.gather(*(_adapter_of(engine, adapter, may_wake=is_alone) for engine in engines))
        found = [(engine, held) for engine, held in zip(engines, told, strict=True) if isinstance(held, str)]
        if len(found) > 1:
            labels = ", ".join(f"{engine.label}/{name}" for engine, _ in found)
            raise invalid("model", name, f"several engines have it; name one: {labels}")
        if found:
            return found[0]
        failure = next((held for held in told if isinstance(held, Exception)), None)
        raise failure or unknown_model(name)

    async def entries(self) -> list[dict[str, Any]]:
        """All models, for JSON; those of an engine that cannot be asked only once it can.

        Raises:
            Unavailable, RelayedError, ApiError: no engine can be asked.
        """
        told = await asyncio.gather(*(_entries_of(engine) for engine in self.engines))
        lists = [entries for entries in told if isinstance(entries, list)]
        if not lists:
            raise next(failure for failure in told if isinstance(failure, Exception))
        counts = Counter(entry["id"] for entries in lists for entry in entries)
        for engine, entries in zip(self.engines, told, strict=True):
            for entry in entries if isinstance(entries, list) else ():
                if counts[entry["id"]] > 1:
                    entry["id"] = entry["root"] = f"{engine.label}/{entry['id']}"
        return [entry for entries in lists for entry in entries]

    def _meant(self, name: str) -> tuple[tuple[Engine, ...], str]:
        """Engines that may have what is named, and what it is called there."""
        label, slash, adapter = name.partition("/")
        if slash and label in self._by_label:
            return (self._by_label[label],), adapter
        return self.engines, name


async def _adapter_of(engine: Engine, name: str, *, may_wake: bool) -> str | Exception | None:
    try:
        return await engine.adapter_of(name, may_wake=may_wake)
    except CANNOT_SAY as error:
        return error


async def _entries_of(engine: Engine) -> list[dict[str, Any]] | Exception:
    try:
        return await engine.entries()
    except CANNOT_SAY as error:
        return error
