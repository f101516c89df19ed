"""POST /v1/embeddings: each text's embedding, which the model makes of its states in one step and draws nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from trierarch.orchestrator.gateway.catalogue import Catalogue
from trierarch.orchestrator.gateway.completion_request import Prompt, read_prompts, with_prompt
from trierarch.orchestrator.gateway.engine import Engine
from trierarch.orchestrator.gateway.errors import ApiError, invalid
from trierarch.orchestrator.gateway.fields import Fields
from trierarch.orchestrator.gateway.generation import read_model
from trierarch.orchestrator.gateway.sampling import IGNORED
from trierarch.orchestrator.gateway.tensors import Tensors, all_numbers, first_text, outputs_of
from trierarch.orchestrator.gateway.triton import Triton

MAX_TEXTS: Final = 2048
MAX_AT_ONCE: Final = 16
"""Texts of one request that are with the model: it batches them, and others have their turn."""
_OUTPUTS: Final = ("embedding", "usage")
_KNOWN: Final = IGNORED | {"model", "input", "encoding_format", "dimensions", "add_special_tokens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    """Texts, and how their embeddings are told."""

    model: str
    texts: tuple[Prompt, ...]
    tensors: Tensors
    """Of all of them alike."""
    is_base64: bool
    num_dimensions: int | None
    """The first so many alone, at length 1 again; None is all."""


def read_embeddings(body: dict[str, Any]) -> EmbeddingsRequest:
    """The request in a body.

    Raises:
        ApiError: a field is missing, unknown, of another type or out of range.
    """
    fields = Fields(body)
    fields.refuse_others(_KNOWN)
    encoding = fields.text("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        fields.fail("encoding_format", "must be float or base64")
    tensors = Tensors()
    tensors.integer("max_tokens", 1)  # the contract wants to know; it is drawn, and told nobody
    for name in ("return_embedding", "return_usage", "return_finish_reason"):
        tensors.flag(name)
    if "add_special_tokens" in fields:
        tensors.flag("add_special_tokens", fields.flag("add_special_tokens"))
    return EmbeddingsRequest(
        model=read_model(fields),
        texts=read_prompts(fields, "input", MAX_TEXTS),
        tensors=tensors,
        is_base64=encoding == "base64",
        num_dimensions=fields.integer("dimensions", 1),
    )


class Embeddings:
    """Asks the model. For one event loop."""

    def __init__(self, triton: Triton, catalogue: Catalogue) -> None:
        self._triton, self._catalogue = triton, catalogue

    async def answer(self, request: EmbeddingsRequest, request_id: str) -> dict[str, Any]:
        """The answer, for JSON.

        Raises:
            ApiError: the engine makes none, or has fewer dimensions.
            Unavailable, RelayedError: the model refuses a text, or cannot be asked.
        """
        engine, adapter = await self._catalogue.find(request.model)
        if not (await engine.description()).makes_embeddings:
            raise ApiError(
                400,
                "this engine generates text and makes no embeddings; ask one that was built with --pooling last or mean",
                param="model",
                code="unsupported",
            )
        tensors = request.tensors.copy()
        if adapter:
            tensors.texts("lora_name", adapter)
        with engine.capacity.place():
            found = await self._ask_all(engine, request.texts, tensors, request_id)
        engine.capacity.finish()
        num_tokens = sum(count for _, count in found)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _told(numbers, request)}
                for index, (numbers, _) in enumerate(found)
            ],
            "model": request.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }

    async def _ask_all(
        self, engine: Engine, texts: Sequence[Prompt], tensors: Tensors, request_id: str
    ) -> list[tuple[Sequence[float], int]]:
        """(embedding, tokens of the text) of each; the first that fails ends all."""
        turns = asyncio.Semaphore(MAX_AT_ONCE)

        async def ask(number: int, text: Prompt) -> tuple[Sequence[float], int]:
            async with turns:
                return await self._ask(engine, with_prompt(tensors, text), f"{request_id}.{number}")

        tasks = [asyncio.ensure_future(ask(number, text)) for number, text in enumerate(texts)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, engine: Engine, tensors: Tensors, request_id: str) -> tuple[Sequence[float], int]:
        request = tensors.request(engine.model, request_id, _OUTPUTS)
        async with (
            engine.upstream.lease() as endpoints,
            self._triton.responses(endpoints, request) as responses,
        ):
            async for response in responses:
                outputs = outputs_of(response)
                usage = json.loads(first_text(outputs["usage"]))
                return all_numbers(outputs["embedding"]), usage["prompt_tokens"]
        raise ApiError(502, "the model did not answer", code="internal_error")


def _told(numbers: Sequence[float], request: EmbeddingsRequest) -> list[float] | str:
    """As the request wants it."""
    most = request.num_dimensions
    if most is not None:
        if most > len(numbers):
            raise invalid("dimensions", most, f"this engine's embeddings have {len(numbers)}; ask for at most that")
        numbers = numbers[:most]
        length = math.sqrt(sum(number * number for number in numbers)) or 1.0
        numbers = [number / length for number in numbers]
    if request.is_base64:
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    return list(numbers)
