"""What a deployment relies on, on a real Triton: KServe's own clients, probes' addresses, and the metrics that are queried."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.deployments import small_spec, weighty_engine
from support.kserve_sdk import sdk_python
from support.triton_requests import unary
from trierarch.ensembles.compose import ComposeOptions, compose
from trierarch.kserve.cold_start import cold_start_budget
from trierarch.kserve.objects.dashboard import dashboard_document
from trierarch.kserve.objects.monitoring import alerts
from trierarch.kserve.objects.signals import kv_query, waiting_query
from trierarch.orchestrator.fetch import fetch
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.serving import serving
from trierarch.orchestrator.triton_server import TritonServer

PROMPT = "The capital of France is"
SESSION = Path(__file__).parents[1] / "support/kserve_sdk_session.py"


@pytest.fixture(scope="module")
def unary_triton(demo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton whose models answer once, as unary gRPC clients want it: KServe's has no streams."""
    repository = tmp_path_factory.mktemp("kserve") / "repository"
    compose(demo_engine, repository, ComposeOptions(decoupled=False))
    with serving(repository, ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), drain_timeout=5)) as server:
        yield server
        server.stop()


@pytest.mark.timeout(900)
def test_kserves_own_clients_are_served(unary_triton: TritonServer, tmp_path: Path) -> None:
    python, at = sdk_python(), unary_triton.endpoints
    done = subprocess.run(
        [python, "-W", "ignore", SESSION, at.http, at.grpc, PROMPT],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    expected = unary(at.grpc, "tensorrt_llm", text_input=PROMPT, request_output_len=8).text
    assert expected.startswith(f"{PROMPT} Paris")
    for client in ("rest", "grpc"):
        told = found[client]
        assert told["text"] == expected, client
        assert told["model ready"] is True, client
        assert {"text_input", "input_ids", "lora_name"} <= set(told["inputs"]), client
    assert (found["grpc"]["live"], found["grpc"]["ready"]) == (True, True)
    # By REST the client wants an object there, and the protocol says that the body may be empty, as Triton's is.
    assert (found["rest"]["live"], found["rest"]["ready"]) == ("no JSON", "no JSON")


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/health/live"])
def test_probes_are_answered(triton: TritonServer, path: str) -> None:
    assert httpx.get(f"{triton.endpoints.http}{path}", trust_env=False, timeout=60).status_code == 200


def test_every_metric_that_is_queried_is_on_the_page(triton: TritonServer) -> None:
    spec, engine = small_spec(cold_start={"ttft_objective": 5}), weighty_engine()
    queries = [alert.expression for alert in alerts(spec, cold_start_budget(spec, engine))]
    queries += [target["expr"] for panel in dashboard_document(spec)["panels"] for target in panel["targets"]]
    queries += [waiting_query(spec), kv_query(spec)]
    named = set(re.findall(r"\b((?:nv|trierarch)_[a-z_]+)\{", " ".join(queries)))
    # A histogram's and a counter's samples come with the first value.
    unary_free = {name.removesuffix("_bucket").removesuffix("_sum") for name in named}

    page = fetch(triton.endpoints.metrics)
    families = set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))
    assert len(unary_free) > 10
    assert unary_free <= families, unary_free - families
