"""Metrics that queries name, and metrics that there are."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from support.triton_metrics import RecordingRegistry
from trierarch.builder.manifest import Lora
from trierarch.orchestrator.gateway.gateway_metrics import GatewayMetrics
from trierarch.orchestrator.sleep.figures import Figures, Page
from trierarch.orchestrator.sleep.lifecycle import Lifecycle
from trierarch.orchestrator.sleep.rest import Rest
from trierarch.python_backend.triton.metrics import EngineMetrics

TRITONS_OWN = {"nv_inference_request_success", "nv_inference_request_failure"}
"""Of every model, by Triton itself; tests/integration/test_kserve.py finds them on a real server."""
SUFFIXES = ("", "_bucket", "_sum", "_count")
OTHERS = re.compile(r"\b(?:kn|interceptor|llm_d_epp|kube)_\w+")
"""Of other projects: they are recorded where they are asked for, and nothing here can try them."""


def metrics_in(queries: Iterable[str]) -> set[str]:
    """Names that stand before braces."""
    return {name for query in queries for name in re.findall(r"\b([a-z_:]+)\{", query)}


def our_pages() -> str:
    """The sleeper's and the gateway's, of nothing that happened yet."""
    page = Page()
    page.add("demo", Figures(Lifecycle(Rest(idle_timeout=1)), time.monotonic))
    return (page.render() + GatewayMetrics([], lambda: 0, lambda: True).own()).decode()


def our_metrics() -> set[str]:
    """What our own pages have, and Triton's with our backend."""
    registry = RecordingRegistry()
    EngineMetrics(registry, "tensorrt_llm", "1", lora=Lora())
    names = {name for name, _ in registry.cells} | set(registry.infos) | TRITONS_OWN
    names |= set(re.findall(r"^# TYPE (\w+) ", our_pages(), re.MULTILINE))
    return {f"{name}{suffix}" for name in names for suffix in SUFFIXES}
