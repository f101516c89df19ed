"""Catalogue: the models that clients may name: the engine, and each of its adapters."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trierarch.orchestrator.gateway.errors import ApiError, unknown_model
from trierarch.orchestrator.gateway.tensors import Tensors, first_text, outputs_of
from trierarch.orchestrator.gateway.triton import Triton
from trierarch.orchestrator.gateway.upstream import Upstream

FRESH_SECONDS: Final = 1.0
"""How long what the model said of itself is believed by who looks for something new."""
KNOWN_SECONDS: Final = 30.0
"""The same for a name that is known: should it be gone, the model says so itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the model says of itself."""

    name: str
    max_seq_len: int
    max_batch_size: int
    max_queue_size: int
    has_chat_template: bool
    adapters: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Description:
        """Read the model's `description` output."""
        told: Mapping[str, Any] = json.loads(text)
        return cls(
            name=told["name"],
            max_seq_len=told["max_seq_len"],
            max_batch_size=told["max_batch_size"],
            max_queue_size=told["max_queue_size"],
            has_chat_template=told["has_chat_template"],
            adapters=frozenset(told["adapters"]),
        )


class Catalogue:
    """Asks the model, and remembers. For one event loop."""

    def __init__(self, upstream: Upstream, triton: Triton, model: str, served_names: tuple[str, ...]) -> None:
        """See GatewayConfig."""
        self._upstream, self._triton = upstream, triton
        self._model, self._served_names = model, served_names
        self._known: Description | None = None
        self._known_at = 0.0
        self._asking = asyncio.Lock()  # one asks for all
        self.created = int(time.time())
        """Seconds of Unix time: since when they are served."""

    async def description(self, max_age: float = KNOWN_SECONDS) -> Description:
        """What the model said of itself `max_age` seconds ago at most; of one that sleeps, what it said last.

        Raises:
            Unavailable, RelayedError: it cannot be asked.
        """
        async with self._asking:
            is_fresh = time.monotonic() - self._known_at < max_age
            if self._known is not None and (is_fresh or self._upstream.awake is None):
                return self._known
            async with self._upstream.lease() as endpoints:
                self._known = await self._ask(endpoints.grpc)
            self._known_at = time.monotonic()
            return self._known

    async def _ask(self, address: str) -> Description:
        tensors = Tensors()
        tensors.flag("describe")
        request = tensors.request(self._model, "describe", ["description"])
        async with self._triton.responses(address, request) as responses:
            async for response in responses:
                return Description.parse(first_text(outputs_of(response)["description"]))
        raise ApiError(502, "the model did not say what it is", code="internal_error")

    def names(self, description: Description) -> tuple[str, ...]:
        """What the base model is called."""
        return self._served_names or (description.name,)

    async def adapter_of(self, model: str) -> str:
        """The adapter that a model's name stands for; empty is the base model.

        Raises:
            ApiError: nothing of that name is served.
            Unavailable, RelayedError: the model cannot be asked.
        """
        for max_age in (KNOWN_SECONDS, FRESH_SECONDS):
            description = await self.description(max_age)
            if model in self.names(description) or model == self._model:
                return ""
            if model in description.adapters:
                return model
        raise unknown_model(model)

    async def entries(self) -> list[dict[str, Any]]:
        """All models, for JSON: the base model under each of its names, then adapters by name."""
        description = await self.description(FRESH_SECONDS)
        names = self.names(description)
        entries = [self._entry(name, None, description) for name in names]
        adapters = sorted(description.adapters.difference(names))
        return entries + [self._entry(name, names[0], description) for name in adapters]

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
