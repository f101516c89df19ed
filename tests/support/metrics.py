"""Reading a server's metrics page in tests."""

from __future__ import annotations

from collections.abc import Callable

from support.eventually import eventually
from trierarch.orchestrator.metrics import Metrics


def requests(url: str, kind: str) -> int:
    """Requests of one kind: active, scheduled, waiting, context or max."""
    return round(Metrics.read(url).value("nv_trt_llm_request_metrics", request_type=kind))


def kv_blocks(url: str, kind: str) -> int:
    """KV cache blocks of one kind: used, free, max, reused or tokens_per."""
    return round(Metrics.read(url).value("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type=kind))


def wait_for_active(url: str, num_requests: int) -> None:
    """Wait until exactly that many requests are waiting or running."""
    eventually(lambda: _tells(requests, url, "active", num_requests), f"{num_requests} active requests")


def wait_until_idle(url: str) -> None:
    """Wait until no request is left, and no KV block is held."""
    wait_for_active(url, 0)
    eventually(lambda: _tells(kv_blocks, url, "used", 0), "all KV blocks given back")


def _tells(figure: Callable[[str, str], int], url: str, kind: str, value: int) -> bool:
    try:
        return figure(url, kind) == value
    except KeyError:  # a page that others pass on is without Triton's part while Triton is late with it
        return False
