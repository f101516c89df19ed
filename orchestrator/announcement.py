"""What a server that is ready tells people and scripts: models, capacity, endpoints, and lines to paste."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from rich.table import Table

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.fetch import fetch
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.server_config import Endpoints

MODEL = "tensorrt_llm"
QUESTION = "Why is the sky blue?"


class Announced(Protocol):
    """A server that is ready."""

    @property
    def endpoints(self) -> Endpoints:
        """Where clients on this machine connect."""
        ...

    @property
    def log(self) -> Path:
        """Triton's log."""
        ...


def endpoint_table(server: Announced, *more: tuple[str, str]) -> Table:
    """Models, capacity and endpoints, and `more` lines below."""
    endpoints = server.endpoints
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("models", ", ".join(models(server)))
    for name, value in capacity(server):
        table.add_row(name, value)
    table.add_row("gRPC", endpoints.grpc)
    table.add_row("HTTP", endpoints.http)
    table.add_row("metrics", endpoints.metrics)
    for name, value in more:
        table.add_row(name, value)
    return table


def commands_to_paste(server: Announced, openai: str | None = None) -> Iterator[str]:
    """Shell lines that ask the server something; `openai` is where the gateway listens."""
    yield f"trierarch generate '{QUESTION}' --url {server.endpoints.grpc}"
    body = {"text_input": QUESTION, "max_tokens": 64, "stream": True, "apply_chat_template": True}
    yield f"curl -N {server.endpoints.http}/v2/models/{MODEL}/generate_stream -d '{json.dumps(body)}'"
    if openai is not None:
        chat = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64, "stream": True}
        yield f"curl -N {openai}/v1/chat/completions -d '{json.dumps(chat)}'"


def endpoints_json(server: Announced, openai: str | None = None) -> str:
    """The endpoints, models and log, on one line; `openai` is where the gateway listens."""
    gateway = {} if openai is None else {"openai": openai}
    return json.dumps(asdict(server.endpoints) | gateway | {"models": models(server), "log": str(server.log)})


def models(server: Announced) -> list[str]:
    """Names of the repository's models that are ready."""
    index = json.loads(fetch(f"{server.endpoints.http}/v2/repository/index", json.dumps({"ready": True})))
    return sorted(model["name"] for model in index)


def capacity(server: Announced) -> Iterator[tuple[str, str]]:
    """(what, value) of what the executor said it can hold."""
    try:
        metrics = Metrics.read(server.endpoints.metrics)
        family = "nv_trt_llm_kv_cache_block_metrics"
        blocks = round(metrics.value(family, kv_cache_block_type="max"))
        tokens = round(metrics.value(family, kv_cache_block_type="tokens_per"))
        requests = round(metrics.value("nv_trt_llm_request_metrics", request_type="max"))
    except (ResourceError, KeyError):
        return  # a repository of other models
    yield "capacity", f"{blocks * tokens:,} tokens of KV in {blocks:,} blocks of {tokens}; {requests} sequences at once"
