"""A thousand adapters behind a real Triton: everybody is answered, and memory stays what the engine allows."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from support.checkpoints import random_checkpoint
from support.metrics import wait_until_idle
from support.packed_adapters import random_packed, write_random_packed
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import MANIFEST_NAME, DType, EngineManifest, Lora
from trierarch.ensembles.compose import ComposeOptions, compose
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.serving import serving
from trierarch.orchestrator.triton_server import TritonServer

NUM_ADAPTERS = 1000
NUM_LOADED = 24
NUM_CLIENTS = 16
RANK = 8
LABELS = {"model": "tensorrt_llm", "version": "1"}


@dataclass(frozen=True, slots=True)
class World:
    """A server of four slots, and what its adapters take."""

    server: TritonServer
    host_bytes: int
    all_bytes: int

    def ask(self, client: httpx.Client, name: str) -> tuple[int, ...]:
        """What an adapter says."""
        body = {
            "text_input": f"the {name} left",
            "max_tokens": 4,
            "end_id": -1,
            "lora_name": name,
            "exclude_input_in_output": True,
        }
        reply = client.post(f"{self.server.endpoints.http}/v2/models/tensorrt_llm/generate", json=body)
        assert reply.status_code == 200, reply.text
        return tuple(reply.json()["output_ids"])

    def resident(self) -> int:
        """Bytes of the process that has the engine."""
        return max(int(psutil.Process(pid).memory_info().rss) for pid in self.server.stub_pids())

    def value(self, name: str, **labels: str) -> float:
        """Of a metric."""
        return Metrics.read(self.server.endpoints.metrics).value(name, **LABELS, **labels)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("thousand")
    shelf = folder / "shelf"
    shelf.mkdir()
    engine, num_bytes = make_engine(folder)
    manifest = EngineManifest.load(engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # what a test writes need not outlive a power cut
        for seed in range(NUM_ADAPTERS):
            write_random_packed(shelf, name_of(seed), manifest, rank=RANK, seed=seed, strength=4.0)
    compose(engine, folder / "repository", ComposeOptions(adapters=(shelf,)))
    ports = Ports(http=0, grpc=0, metrics=0)
    with serving(folder / "repository", ServerConfig(ports=ports, drain_timeout=5)) as server:
        yield World(server, NUM_LOADED * num_bytes, NUM_ADAPTERS * num_bytes)
        server.stop()


def make_engine(folder: Path) -> tuple[Path, int]:
    """An engine with room for NUM_LOADED of the adapters, and what one of them takes."""
    checkpoint, engine = random_checkpoint("llama", folder / "checkpoint"), folder / "engine"
    build(
        BuildConfig(
            model=str(checkpoint),
            output=engine,
            dtype=DType.FLOAT32,
            kv_cache_bytes=64 << 20,
            max_adapters=4,
            max_lora_rank=RANK,
        )
    )
    manifest = EngineManifest.load(engine)
    num_bytes = random_packed(manifest, rank=RANK).num_bytes
    lora = Lora(max_rank=RANK, max_adapters=4, host_bytes=NUM_LOADED * num_bytes)
    (engine / MANIFEST_NAME).write_text(manifest.model_copy(update={"lora": lora}).to_json())
    return engine, num_bytes


def name_of(index: int) -> str:
    return f"a{index:03}"


def test_a_thousand_adapters_are_served_in_the_memory_of_a_few(world: World) -> None:
    """Each of them once, in any order, and popular ones again and again meanwhile; then some of them alone."""
    chance = random.Random(0)
    everybody = [name_of(index) for index in range(NUM_ADAPTERS)]
    popular = chance.choices(everybody, [1 / (1 + index) for index in range(NUM_ADAPTERS)], k=NUM_ADAPTERS // 3)
    asked = everybody + popular
    chance.shuffle(asked)
    limits = httpx.Limits(max_connections=NUM_CLIENTS)
    with httpx.Client(timeout=120, trust_env=False, limits=limits) as client, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        first = dict(zip(asked[:200], pool.map(lambda name: world.ask(client, name), asked[:200]), strict=True))
        resident = world.resident()
        answered: dict[str, tuple[int, ...]] = dict(first)
        for name, answer in zip(asked[200:], pool.map(lambda name: world.ask(client, name), asked[200:]), strict=True):
            assert answered.setdefault(name, answer) == answer, (
                "an adapter says one thing, whoever was let go of before"
            )
        grown = world.resident() - resident
        wait_until_idle(world.server.endpoints.metrics)
        assert {name: world.ask(client, name) for name in popular[:20]} == {
            name: answered[name] for name in popular[:20]
        }
    assert len(answered) == NUM_ADAPTERS
    assert len(set(answered.values())) > NUM_ADAPTERS // 2
    assert (
        world.value("trierarch_adapters", status="registered") + world.value("trierarch_adapters", status="loaded")
        >= 900
    )
    assert world.value("trierarch_adapter_load_failures_total") == 0
    assert world.value("trierarch_adapter_loads_total") >= NUM_ADAPTERS
    assert world.value("trierarch_adapter_evictions_total") >= NUM_ADAPTERS - NUM_LOADED
    assert 0 < world.value("trierarch_adapter_bytes") <= world.host_bytes
    assert grown < world.all_bytes / 3
