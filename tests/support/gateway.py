"""A gateway in front of a real Triton, and OpenAI's own client to ask it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai

from support.eventually import eventually
from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
from trierarch.orchestrator.gateway.gateway_server import GatewayServer
from trierarch.orchestrator.gateway.source import always_on
from trierarch.orchestrator.gateway.upstream import Endpoints
from trierarch.orchestrator.triton_server import TritonServer


@contextmanager
def gateway_before(triton: TritonServer, **config: Any) -> Iterator[GatewayServer]:
    """A gateway on a free port, with fields of GatewayConfig."""
    at = triton.endpoints
    endpoints = Endpoints(
        grpc=at.grpc,
        http=at.http.removeprefix("http://"),
        metrics=at.metrics.removeprefix("http://").removesuffix("/metrics"),
    )
    with GatewayServer(GatewayConfig(port=0, **config), lambda: always_on(endpoints)) as server:
        yield server


@contextmanager
def openai_client(url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a gateway; it repeats nothing by itself."""
    with httpx.Client(trust_env=False, timeout=120) as transport:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=transport)


def whole_page(url: str) -> str:
    """The gateway's page of metrics, once Triton's is on it: that is left out while Triton is late with it."""
    pages = [""]

    def is_whole() -> bool:
        pages.append(httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text)
        return "nv_trt_llm_request_metrics" in pages[-1]

    eventually(is_whole, "Triton's own metrics beside the gateway's")
    return pages[-1]
