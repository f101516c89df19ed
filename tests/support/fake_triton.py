"""A gRPC server that speaks Triton's ModelStreamInfer and says what a test scripts: for what no real one does on demand."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import grpc.aio

from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
from trierarch.orchestrator.gateway.gateway_server import GatewayServer
from trierarch.orchestrator.gateway.source import Source
from trierarch.orchestrator.gateway.triton_messages import service_pb2
from trierarch.orchestrator.gateway.upstream import ENGINE_HEADER, Endpoints, Unavailable

ENGINE: Final = "demo"
DESCRIPTION: Final = {
    "name": ENGINE,
    "digest": "0" * 64,
    "vocab_size": 100,
    "max_seq_len": 64,
    "max_batch_size": 4,
    "max_queue_size": 8,
    "has_chat_template": True,
    "makes_embeddings": False,
    "adapters": ["french"],
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as it came."""

    request_id: str
    inputs: dict[str, list[Any]]
    """Name -> elements."""
    outputs: list[str]
    model: str
    engine: str
    """Whom the metadata name; empty is nobody."""

    def one(self, name: str) -> Any:
        """The one element of an input; None where it was not sent."""
        return self.inputs[name][0] if name in self.inputs else None


@dataclass(frozen=True, slots=True)
class Said:
    """One response: outputs by name, or an error in Triton's words."""

    texts: dict[str, str] = field(default_factory=dict)
    integers: dict[str, list[int]] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    error: str = ""


Script = Callable[[Asked], AsyncIterator[Said]]


def last(text: str = "", reason: str = "stop", index: int = 0, tokens: int = 1, **more: str) -> Said:
    """The last piece of an answer."""
    usage = {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": tokens}
    told = {"text_output": text, "finish_reason": reason, "usage": json.dumps(usage), **more}
    return Said(told, {"sequence_index": [index]})


async def say_hello(asked: Asked) -> AsyncIterator[Said]:
    """Two words."""
    yield Said({"text_output": "Hello"})
    yield last(" world", tokens=2)


class FakeTriton:
    """One server on the loopback."""

    def __init__(self) -> None:
        self.script: Script = say_hello
        self.asked: list[Asked] = []
        """What came, but for what asks what is served."""
        self.num_cancelled = 0
        self.num_sent = 0
        self.num_described = 0
        self.description: dict[str, Any] = dict(DESCRIPTION)

    async def stream_infer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """ModelStreamInfer."""
        async for request in requests:
            metadata = dict(context.invocation_metadata())
            asked = _read(request, metadata.get(ENGINE_HEADER, ""))
            if asked.one("describe"):
                self.num_described += 1
                yield _response(Said({"description": json.dumps(self.description)}), True)
                return
            self.asked.append(asked)
            try:
                async for said in self.script(asked):
                    self.num_sent += 1
                    yield _response(said, False)
            except (asyncio.CancelledError, GeneratorExit):
                self.num_cancelled += 1
                raise
            yield _response(Said(), True)


@contextmanager
def fake_triton() -> Iterator[tuple[FakeTriton, str]]:
    """A server that runs, and its address."""
    fake = FakeTriton()
    started, stop, address = threading.Event(), threading.Event(), ""

    async def run() -> None:
        nonlocal address
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            fake.stream_infer,
            request_deserializer=service_pb2.ModelInferRequest.FromString,
            response_serializer=service_pb2.ModelStreamInferResponse.SerializeToString,
        )
        methods = {"ModelStreamInfer": handler}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),)
        )
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        started.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    started.wait()
    try:
        yield fake, address
    finally:
        stop.set()
        thread.join()


class FixedUpstream:
    """An upstream at one address, as a test wants it."""

    def __init__(self, address: str, engine: str = "") -> None:
        self._endpoints = Endpoints(grpc=address, http="127.0.0.1:1", metrics="127.0.0.1:1", engine=engine)
        self.refusal: Unavailable | None = None
        self.wake: asyncio.Event | None = None
        """Waited for by every lease, where there is one."""
        self.num_waiting = 0
        self.num_leases = 0
        self.num_uses = 0
        """Leases that there ever were."""

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Endpoints]:
        """See Upstream."""
        if self.refusal is not None:
            raise self.refusal
        self.num_waiting += 1
        try:
            if self.wake is not None:
                await self.wake.wait()
        finally:
            self.num_waiting -= 1
        self.num_leases += 1
        self.num_uses += 1
        try:
            yield self._endpoints
        finally:
            self.num_leases -= 1

    @property
    def is_ready(self) -> bool:
        """See Upstream."""
        return self.refusal is None

    @property
    def awake(self) -> Endpoints | None:
        """See Upstream."""
        return None if self.refusal or self.wake else self._endpoints

    @property
    def metrics(self) -> str | None:
        """See Upstream."""
        return None if self.awake is None else self.awake.metrics


@dataclass(frozen=True, slots=True)
class Front:
    """A gateway before a fake Triton."""

    server: GatewayServer
    triton: FakeTriton
    upstream: FixedUpstream

    @property
    def url(self) -> str:
        """Of the gateway."""
        return self.server.url

    @property
    def port(self) -> int:
        """Of the gateway."""
        return int(self.server.url.rsplit(":", 1)[1])


@contextmanager
def gateway_of(sources: list[Source], **config: Any) -> Iterator[GatewayServer]:
    """A gateway on a free port, with fields of GatewayConfig."""
    with GatewayServer(GatewayConfig(**{"port": 0} | config), lambda: nullcontext(sources)) as server:
        yield server


@contextmanager
def front(names: tuple[str, ...] = (), **config: Any) -> Iterator[Front]:
    """A gateway on a free port, with fields of GatewayConfig, before a fake Triton; `names` are what clients call it."""
    with fake_triton() as (triton, address):
        upstream = FixedUpstream(address)

        source = Source(label="only", upstream=upstream, names=names)
        with gateway_of([source], **config) as server:
            yield Front(server, triton, upstream)


def _read(request: Any, engine: str) -> Asked:
    inputs = {
        tensor.name: _elements(tensor.datatype, content)
        for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
    }
    return Asked(request.id, inputs, [output.name for output in request.outputs], request.model_name, engine)


def _elements(datatype: str, content: bytes) -> list[Any]:
    if datatype == "BYTES":
        found = []
        while content:
            (length,) = struct.unpack_from("<I", content)
            found.append(content[4 : 4 + length].decode())
            content = content[4 + length :]
        return found
    code, size = {"INT32": ("i", 4), "FP32": ("f", 4), "UINT64": ("Q", 8), "BOOL": ("?", 1)}[datatype]
    return list(struct.unpack(f"<{len(content) // size}{code}", content))


def _response(said: Said, is_final: bool) -> Any:
    message = service_pb2.ModelStreamInferResponse(error_message=said.error)
    response = message.infer_response
    response.parameters["triton_final_response"].bool_param = is_final
    for name, text in said.texts.items():
        data = text.encode()
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(struct.pack("<I", len(data)) + data)
    for name, numbers in said.numbers.items():
        response.outputs.add(name=name, datatype="FP32", shape=[1, len(numbers)])
        response.raw_output_contents.append(struct.pack(f"<{len(numbers)}f", *numbers))
    for name, values in said.integers.items():
        response.outputs.add(name=name, datatype="INT32", shape=[1, len(values)])
        response.raw_output_contents.append(struct.pack(f"<{len(values)}i", *values))
    return message
