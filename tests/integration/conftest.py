"""Real engines of the demo checkpoint, and a real Triton over them, shared by a test run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.demo import demo_checkpoint
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DType, Pooling
from trierarch.orchestrator.client import TritonClient
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.serving import serving
from trierarch.orchestrator.triton_server import TritonServer

KV_CACHE_BYTES = 384 << 20
"""Room for one sequence of max_seq_len in float32, which is a machine's own dtype where it has no bfloat16."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lies in this folder is an integration test."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def demo_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the demo checkpoint in the machine's own dtype."""
    return _build(tmp_path_factory.mktemp("engines") / "demo", None)


@pytest.fixture(scope="session")
def demo_engine_float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the demo checkpoint in float32: what equals the reference token by token."""
    return _build(tmp_path_factory.mktemp("engines") / "demo-float32", DType.FLOAT32)


def _build(output: Path, dtype: DType | None) -> Path:
    config = BuildConfig(
        model=str(demo_checkpoint()), output=output, dtype=dtype, kv_cache_bytes=KV_CACHE_BYTES, pooling=Pooling.MEAN
    )
    build(config)
    return output


@pytest.fixture(scope="session")
def triton(demo_engine: Path) -> Iterator[TritonServer]:
    """A Triton that serves `demo_engine` on free ports; tests share it and leave it idle."""
    with serving(demo_engine, ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), drain_timeout=5)) as server:
        yield server
        server.stop()


@pytest.fixture
def client(triton: TritonServer) -> TritonClient:
    """Asks the text door of `triton`."""
    return TritonClient(triton.endpoints.grpc)
