"""The gateway's own metrics, and Triton's page beside them: what scrapes the port that serves finds both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trierarch.orchestrator.fetch import FetchFailed, fetch
from trierarch.orchestrator.gateway.engine import Engine
from trierarch.orchestrator.gateway.upstream import Upstream

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TRITON_SECONDS: Final = 2.0


class GatewayMetrics:
    """Counted for one gateway."""

    def __init__(self, engines: Iterable[Engine], num_open: Callable[[], int], is_ready: Callable[[], bool]) -> None:
        """`num_open`: requests that generate; `is_ready`: whether new ones would be answered."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "trierarch_gateway_requests",
            "Requests by endpoint and status; 499 is a client that hung up",
            ("endpoint", "status"),
            registry=self._registry,
        )
        self.first_token = Histogram(
            "trierarch_gateway_time_to_first_token_seconds",
            "From a request's last byte to the first byte of its answer's text",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "trierarch_gateway_prompt_tokens", "Tokens of prompts that were answered", registry=self._registry
        )
        self.completion_tokens = Counter(
            "trierarch_gateway_completion_tokens", "Tokens of whole answers", registry=self._registry
        )
        Gauge("trierarch_gateway_open_requests", "Requests that wait or run", registry=self._registry).set_function(
            lambda: float(num_open())
        )
        Gauge(
            "trierarch_gateway_ready", "Whether new requests would be answered", registry=self._registry
        ).set_function(lambda: float(is_ready()))
        engine_ready = Gauge(
            "trierarch_gateway_engine_ready",
            "Whether new requests for it would be answered",
            ("engine",),
            registry=self._registry,
        )
        engine_open = Gauge(
            "trierarch_gateway_engine_open_requests",
            "Requests for it that wait or run",
            ("engine",),
            registry=self._registry,
        )
        for engine in engines:
            engine_ready.labels(engine.label).set_function(partial(_is_ready, engine))
            engine_open.labels(engine.label).set_function(partial(_num_open, engine))

    def own(self) -> bytes:
        """The gateway's own page."""
        return generate_latest(self._registry)

    async def page(self, upstreams: Iterable[Upstream]) -> bytes:
        """The pages of what is behind the gateway, where they can be read, and the gateway's own."""
        addresses = dict.fromkeys(upstream.metrics for upstream in upstreams)  # several engines may share one
        pages = await asyncio.gather(*(_read(address) for address in addresses if address is not None))
        return b"".join([*pages, self.own()])


async def _read(address: str) -> bytes:
    """A page of metrics; nothing where it cannot be had."""
    try:
        page = await asyncio.to_thread(fetch, f"http://{address}/metrics", timeout=_TRITON_SECONDS)
    except FetchFailed:
        return b""
    return page.encode()


def _is_ready(engine: Engine) -> float:
    return float(engine.upstream.is_ready)


def _num_open(engine: Engine) -> float:
    return float(engine.capacity.num_open)
