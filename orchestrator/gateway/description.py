"""Description: what a model says of itself, and how it is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trierarch.orchestrator.gateway.errors import ApiError
from trierarch.orchestrator.gateway.tensors import Tensors, first_text, outputs_of
from trierarch.orchestrator.gateway.triton import Triton
from trierarch.orchestrator.gateway.upstream import Endpoints

_FINGERPRINT_DIGITS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the model says of itself."""

    name: str
    digest: str
    """Of the engine, hexadecimal; empty where the server does not tell."""
    max_seq_len: int
    max_batch_size: int
    max_queue_size: int
    has_chat_template: bool
    makes_embeddings: bool
    adapters: frozenset[str]

    @property
    def fingerprint(self) -> str | None:
        """OpenAI's: what a seeded answer depends on besides its request."""
        return f"fp_{self.digest[:_FINGERPRINT_DIGITS]}" if self.digest else None

    @classmethod
    def parse(cls, text: str) -> Description:
        """Read the model's `description` output."""
        told: Mapping[str, Any] = json.loads(text)
        return cls(
            name=told["name"],
            digest=told.get("digest", ""),
            max_seq_len=told["max_seq_len"],
            max_batch_size=told["max_batch_size"],
            max_queue_size=told["max_queue_size"],
            has_chat_template=told["has_chat_template"],
            makes_embeddings=told.get("makes_embeddings", False),  # servers of before do not say
            adapters=frozenset(told["adapters"]),
        )


async def describe(triton: Triton, endpoints: Endpoints, model: str) -> Description:
    """Ask Triton's `model` what it is.

    Raises:
        RelayedError, ApiError: it cannot be asked.
    """
    tensors = Tensors()
    tensors.flag("describe")
    request = tensors.request(model, "describe", ["description"])
    async with triton.responses(endpoints, request) as responses:
        async for response in responses:
            return Description.parse(first_text(outputs_of(response)["description"]))
    raise ApiError(502, "the model did not say what it is", code="internal_error")
