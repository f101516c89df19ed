"""Engine: one of those behind the gateway: what it says of itself, what it is called, and how much it has to do."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from trierarch.orchestrator.gateway.capacity import Capacity
from trierarch.orchestrator.gateway.description import Description, describe
from trierarch.orchestrator.gateway.source import Source
from trierarch.orchestrator.gateway.triton import Triton
from trierarch.python_backend.triton.status import RelayedError

FRESH_SECONDS: Final = 1.0
"""How long what the model said of itself is believed by who looks for something new."""
KNOWN_SECONDS: Final = 30.0
"""The same for a name that is known: should it be gone, the model says so itself."""


class Engine:
    """Asks the model, and remembers. For one event loop."""

    def __init__(self, source: Source, triton: Triton) -> None:
        self.label, self.model, self.upstream = source.label, source.model, source.upstream
        self.capacity = Capacity()
        self._triton = triton
        self._given_names = source.names
        self._known_at = float("-inf")
        self._asking = asyncio.Lock()  # one asks for all
        self._known: Description | None = None
        if source.description is not None:
            self._learn(source.description)
        self.created = int(time.time())
        """Seconds of Unix time: since when it is served."""

    async def description(self, max_age: float = KNOWN_SECONDS, *, may_wake: bool = False) -> Description:
        """What the model said of itself `max_age` seconds ago at most; of one that cannot be looked at, what it said last.

        Once it is known, it is neither woken, unless it `may_wake`, nor kept awake: who polls what is served does not use it.

        Raises:
            Unavailable, RelayedError, ApiError: it cannot be asked.
        """
        async with self._asking:
            if self._known is not None and time.monotonic() - self._known_at < max_age:
                return self._known
            if self._known is None or (may_wake and self.upstream.awake is None):
                description = await self._introduction()
            else:
                description = await self._look(self._known)
            self._learn(description)
            return description

    def is_called(self, name: str) -> bool:
        """Whether that is a name which nobody need be asked about."""
        return name in self._given_names

    def known_adapter(self, name: str) -> str | None:
        """The adapter that a model's name stands for here, as far as is known; empty is the base model, None is nothing."""
        if self._known is None:
            return None
        if name in self._names(self._known):
            return ""
        return name if name in self._known.adapters else None

    async def adapter_of(self, name: str, *, may_wake: bool) -> str | None:
        """The same, asking the model: it may have come lately, or while the model slept.

        Raises:
            Unavailable, RelayedError, ApiError: it cannot be asked.
        """
        await self.description(FRESH_SECONDS, may_wake=may_wake)
        return self.known_adapter(name)

    async def entries(self) -> list[dict[str, Any]]:
        """What it serves, for JSON: the base model under each of its names, then adapters by name.

        Raises:
            Unavailable, RelayedError, ApiError: the model cannot be asked.
        """
        description = await self.description(FRESH_SECONDS)
        names = self._names(description)
        entries = [self._entry(name, None, description) for name in names]
        adapters = sorted(description.adapters.difference(names))
        return entries + [self._entry(name, names[0], description) for name in adapters]

    async def _introduction(self) -> Description:
        async with self.upstream.lease() as endpoints:
            description = await describe(self._triton, endpoints, self.model)
        self._known_at = time.monotonic()
        return description

    async def _look(self, known: Description) -> Description:
        """What it says now, or else what is `known` of it: it may sleep, or go to sleep while it is asked."""
        endpoints = self.upstream.awake
        if endpoints is None:
            return known
        triton = Triton()  # a server that has slept listens elsewhere: no connection to it is worth keeping
        try:
            description = await describe(triton, endpoints, self.model)
        except RelayedError:
            return known
        finally:
            await triton.close()
        self._known_at = time.monotonic()
        return description

    def _learn(self, description: Description) -> None:
        self._known = description
        self.capacity.fit(description.max_batch_size, description.max_queue_size)

    def _names(self, description: Description) -> tuple[str, ...]:
        return self._given_names or (description.name,)

    def _entry(self, name: str, parent: str | None, description: Description) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "trierarch",
            "root": name,
            "parent": parent,
            "max_model_len": description.max_seq_len,
        }
