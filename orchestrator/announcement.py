"""What a server that is ready tells people and scripts: models, capacity, endpoints, and lines to paste."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import httpx
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.client import DEFAULT_MODEL
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.triton_server import TritonServer


def announcement(server: TritonServer) -> RenderableType:
    """A table of endpoints and two commands that ask the server something."""
    endpoints = server.endpoints
    model = f"{endpoints.http}/v2/models/{DEFAULT_MODEL}"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("models", ", ".join(models(server)))
    for name, value in capacity(server):
        table.add_row(name, value)
    table.add_row("gRPC", endpoints.grpc)
    table.add_row("HTTP", f"{model}/generate_stream, {model}/generate")
    table.add_row("metrics", endpoints.metrics)
    table.add_row("log", str(server.log))
    body = json.dumps(
        {"text_input": "Why is the sky blue?", "max_tokens": 64, "stream": True, "apply_chat_template": True}
    )
    return Group(
        Text("ready\n", style="bold green"),
        table,
        Text(f"\n  trierarch generate 'Why is the sky blue?' --url {endpoints.grpc}"),
        Text(f"  curl -N {model}/generate_stream -d '{body}'\n", overflow="fold"),
    )


def endpoints_json(server: TritonServer) -> str:
    """The endpoints, models and log, on one line."""
    return json.dumps(asdict(server.endpoints) | {"models": models(server), "log": str(server.log)})


def models(server: TritonServer) -> list[str]:
    """Names of the models in the repository, those that are ready."""
    index = httpx.post(f"{server.endpoints.http}/v2/repository/index", json={"ready": True}, trust_env=False).json()
    return sorted(model["name"] for model in index)


def capacity(server: TritonServer) -> Iterator[tuple[str, str]]:
    """(what, value) of what the executor said it can hold."""
    try:
        metrics = Metrics.read(server.endpoints.metrics)
        family, label = "nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type"
        blocks = round(metrics.value(family, **{label: "max"}))
        tokens = round(metrics.value(family, **{label: "tokens_per"}))
        requests = round(metrics.value("nv_trt_llm_request_metrics", request_type="max"))
    except (ResourceError, KeyError):
        return  # a repository of other models
    yield "capacity", f"{blocks * tokens:,} tokens of KV in {blocks:,} blocks of {tokens}; {requests} sequences at once"
