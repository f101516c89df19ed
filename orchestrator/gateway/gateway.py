"""Gateway: the OpenAI API in front of one engine or several, as an ASGI application."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from starlette.routing import Route, Router

from trierarch.orchestrator.gateway.adapter_shelf import AdapterShelf
from trierarch.orchestrator.gateway.admission import Admission
from trierarch.orchestrator.gateway.answering import NumberedPieces, answer, pieces_of
from trierarch.orchestrator.gateway.api_keys import ApiKeys
from trierarch.orchestrator.gateway.catalogue import Catalogue
from trierarch.orchestrator.gateway.chat_reply import ChatReply
from trierarch.orchestrator.gateway.chat_request import read_chat
from trierarch.orchestrator.gateway.completion_reply import CompletionReply
from trierarch.orchestrator.gateway.completion_request import read_completion
from trierarch.orchestrator.gateway.embeddings import Embeddings, read_embeddings
from trierarch.orchestrator.gateway.endpoint import Call, Endpoint, Work
from trierarch.orchestrator.gateway.engine import Engine
from trierarch.orchestrator.gateway.errors import ApiError, unknown_model
from trierarch.orchestrator.gateway.fields import parse_object
from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
from trierarch.orchestrator.gateway.gateway_metrics import CONTENT_TYPE, GatewayMetrics
from trierarch.orchestrator.gateway.generation import Generation
from trierarch.orchestrator.gateway.reply import Reply
from trierarch.orchestrator.gateway.source import Source
from trierarch.orchestrator.gateway.tokenization import Tokenization
from trierarch.orchestrator.gateway.triton import Triton


class Gateway:
    """The doors, and what they share. Made within the event loop that serves it."""

    def __init__(self, config: GatewayConfig, sources: Sequence[Source]) -> None:
        """Raise ConfigError where the keys or the adapters' directories cannot be read."""
        self._config = config
        self._triton = Triton()
        self._engines = tuple(Engine(source, self._triton) for source in sources)
        self._catalogue = Catalogue(self._engines)
        self._tokenization = Tokenization(self._triton, self._catalogue)
        self._embeddings = Embeddings(self._triton, self._catalogue)
        self._shelf = AdapterShelf.open(config.adapter_store, config.adapter_directory)
        self._keys = ApiKeys.read(config.api_keys_file, config.api_keys_variable)
        self.admission = Admission(
            config.max_open, config.max_open_per_key, [engine.capacity for engine in self._engines]
        )
        self._metrics = GatewayMetrics(self._engines, lambda: self.admission.num_open, lambda: self.is_ready)
        # A router alone: middleware around it would stand between every event and its client.
        self.application = Router(
            self._routes(), redirect_slashes=False, default=self._endpoint("unknown", "", _find_nothing, is_open=True)
        )

    @property
    def is_ready(self) -> bool:
        """Whether a new request would be answered, whichever engine it is for."""
        return not self.admission.is_draining and all(engine.upstream.is_ready for engine in self._engines)

    async def close(self) -> None:
        """Cut what is open."""
        await self._triton.close()

    def _endpoint(self, name: str, method: str, work: Work, **options: bool) -> Endpoint:
        return Endpoint(
            name,
            method,
            work,
            config=self._config,
            keys=self._keys,
            admission=self.admission,
            metrics=self._metrics,
            **options,
        )

    def _routes(self) -> list[Route]:
        def route(path: str, method: str, work: Work, **options: bool) -> Route:
            return Route(path, self._endpoint(path, method, work, **options))

        return [
            route("/v1/chat/completions", "POST", self._chat, generates=True),
            route("/v1/completions", "POST", self._complete, generates=True),
            route("/v1/embeddings", "POST", self._embed, generates=True),
            route("/v1/models", "GET", self._list_models),
            route("/v1/models/{model:path}", "GET", self._show_model),
            route("/v1/load_lora_adapter", "POST", self._load_adapter),
            route("/v1/unload_lora_adapter", "POST", self._unload_adapter),
            route("/tokenize", "POST", self._tokenize, generates=True),
            route("/detokenize", "POST", self._detokenize, generates=True),
            route("/health", "GET", self._health, is_open=True),
            route("/ready", "GET", self._ready, is_open=True),
            route("/metrics", "GET", self._show_metrics, is_open=True),
        ]

    async def _chat(self, call: Call) -> None:
        request = read_chat(parse_object(call.body))
        generation = request.generation

        def reply(fingerprint: str | None) -> ChatReply:
            return ChatReply(
                reply_id=f"chatcmpl-{uuid.uuid4().hex}",
                created=int(time.time()),
                model=generation.model,
                fingerprint=fingerprint,
                tools=request.tools,
                has_logprobs=generation.has_logprobs,
                include_usage=generation.include_usage,
            )

        await self._generate(call, generation, reply)

    async def _complete(self, call: Call) -> None:
        request = read_completion(parse_object(call.body))
        generation = request.generation
        echoed = [""] * len(request.prompts)
        if request.echo:
            echoed = [
                prompt if isinstance(prompt, str) else await self._tokenization.text_of(generation.model, prompt)
                for prompt in request.prompts
            ]

        def reply(fingerprint: str | None) -> CompletionReply:
            return CompletionReply(
                reply_id=f"cmpl-{uuid.uuid4().hex}",
                created=int(time.time()),
                model=generation.model,
                fingerprint=fingerprint,
                n=generation.n,
                echoed=echoed,
                has_logprobs=generation.has_logprobs,
                include_usage=generation.include_usage,
            )

        await self._generate(call, generation, reply)

    async def _generate(self, call: Call, generation: Generation, reply: Callable[[str | None], Reply]) -> None:
        """`reply` makes one of the engine's fingerprint."""
        started = time.monotonic()
        engine, adapter = await self._catalogue.find(generation.model)
        description = await engine.description()  # and so its capacity is known
        requests = []
        for number, tensors in enumerate(generation.prompts):
            if adapter:
                tensors.texts("lora_name", adapter)
            request_id = call.exchange.request_id + (f".{number}" if number else "")
            requests.append(tensors.request(engine.model, request_id, generation.outputs()))
        with engine.capacity.place():
            async with (
                engine.upstream.lease() as endpoints,
                pieces_of(self._triton, endpoints, requests) as pieces,
            ):
                timed = self._timed(started, pieces)
                usage = await answer(call.exchange, generation, reply(description.fingerprint), timed)
        engine.capacity.finish()
        self._metrics.prompt_tokens.inc(usage.prompt_tokens)
        self._metrics.completion_tokens.inc(usage.completion_tokens)

    async def _list_models(self, call: Call) -> None:
        await _answer_json(call, {"object": "list", "data": await self._catalogue.entries()})

    async def _show_model(self, call: Call) -> None:
        name = call.exchange.path_params["model"]
        for entry in await self._catalogue.entries():
            if entry["id"] == name:
                await _answer_json(call, entry)
                return
        raise unknown_model(name)

    async def _embed(self, call: Call) -> None:
        request = read_embeddings(parse_object(call.body))
        await _answer_json(call, await self._embeddings.answer(request, call.exchange.request_id))

    async def _tokenize(self, call: Call) -> None:
        await _answer_json(call, await self._tokenization.tokenize(parse_object(call.body)))

    async def _detokenize(self, call: Call) -> None:
        await _answer_json(call, await self._tokenization.detokenize(parse_object(call.body)))

    async def _load_adapter(self, call: Call) -> None:
        name = await asyncio.to_thread(self._shelf.load, parse_object(call.body))
        await _answer_json(call, {"object": "adapter", "id": name, "loaded": True})

    async def _unload_adapter(self, call: Call) -> None:
        name = await asyncio.to_thread(self._shelf.unload, parse_object(call.body))
        await _answer_json(call, {"object": "adapter", "id": name, "loaded": False})

    async def _health(self, call: Call) -> None:
        await _answer_json(call, {"status": "alive"})

    async def _ready(self, call: Call) -> None:
        if not self.is_ready:
            raise ApiError(503, self._why_not_ready(), code="not_ready", retry_after=self.admission.retry_after())
        await _answer_json(call, {"status": "ready"})

    def _why_not_ready(self) -> str:
        if self.admission.is_draining:
            return "the server is stopping"
        if len(self._engines) == 1:
            return "the model's server is not ready"
        states = (f"{one.label} is {'' if one.upstream.is_ready else 'not '}ready" for one in self._engines)
        return ", ".join(states)

    async def _show_metrics(self, call: Call) -> None:
        await call.exchange.answer(
            await self._metrics.page([engine.upstream for engine in self._engines]), content_type=CONTENT_TYPE
        )

    async def _timed(self, started: float, pieces: NumberedPieces) -> NumberedPieces:
        """`pieces`, with the time to the first of them told."""
        is_first = True
        async for item in pieces:
            if is_first:
                self._metrics.first_token.observe(time.monotonic() - started)
                is_first = False
            yield item


async def _answer_json(call: Call, content: dict[str, Any]) -> None:
    await call.exchange.answer(json.dumps(content).encode())


async def _find_nothing(call: Call) -> None:
    raise ApiError(404, "nothing is served at this address; /v1 is where the API begins", code="unknown_url")
