"""`trierarch serve` with adapters, and what clients sent over a crash of the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.adapted_engine import AdaptedEngine, adapted_engine
from support.eventually import eventually
from support.serve_process import serve
from support.triton_requests import ask, refusal, unary
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import MANIFEST_NAME, EngineManifest
from trierarch.ensembles.compose import ComposeOptions, compose
from trierarch.orchestrator.client import TritonClient
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.prompt import Prompt
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.serving import serving
from trierarch.python_backend.triton.status import StatusCode

PROMPT = Prompt(text="the ferry left at noon", max_tokens=12, adapter="french")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> AdaptedEngine:
    """An engine and two adapters."""
    return adapted_engine(tmp_path_factory.mktemp("adapted"), 2)


def with_small_kv(engine: Path, copy: Path) -> Path:
    """A copy of an engine whose KV cache has room for one longest sequence."""
    shutil.copytree(engine, copy)
    manifest = EngineManifest.load(copy)
    num_bytes = manifest.limits.max_seq_len * manifest.kv_cache.bytes_per_token
    small = manifest.model_copy(update={"kv_cache": manifest.kv_cache.model_copy(update={"num_bytes": num_bytes})})
    (copy / MANIFEST_NAME).write_text(small.to_json())
    return copy


def test_an_engine_is_served_with_a_directory_and_a_crash_forgets_no_task(
    adapted: AdaptedEngine, tmp_path: Path
) -> None:
    adapted.put(tmp_path, "french", 1)
    engine, kept = with_small_kv(adapted.engine, tmp_path / "small"), tmp_path / "kept"
    tiers = ("--kv-host-bytes", "1MiB", "--kv-disk-directory", str(kept), "--kv-disk-bytes", "1MiB")
    with serve(engine, "--adapters", str(tmp_path), *tiers) as process:
        url = process.endpoints["grpc"]
        (answer,) = TritonClient(url).complete(PROMPT)
        assert list(answer.token_ids) == adapted.greedy(1, PROMPT.text, PROMPT.max_tokens)
        fields = {"text_input": PROMPT.text, "max_tokens": 12}
        (sent,) = ask(url, "tensorrt_llm", lora_task_id=7, **fields, **adapted.sent(2))
        for _ in range(2):  # More than the KV cache has room for, and again.
            for number in range(6):
                ask(url, "tensorrt_llm", text_input=f"{number} " * 60, max_tokens=1)
        page = process.endpoints["metrics"]
        eventually(
            lambda: Metrics.read(page).value("trierarch_kv_tier_hits_total", tier="host") > 0, "blocks that came back"
        )
        assert Metrics.read(page).value("trierarch_kv_tier_blocks", tier="disk") >= 0
        for stub in process.stubs():
            stub.kill()

        def is_back() -> bool:
            try:
                return TritonClient(url).complete(PROMPT) == [answer]
            except Exception:  # noqa: BLE001 - whatever a server says that is going or coming
                return False

        eventually(is_back, "an answer after the crash")
        (again,) = ask(url, "tensorrt_llm", lora_task_id=7, **fields)
        assert again.text == sent.text


def test_unary_clients_are_served_by_a_model_of_an_adapter(adapted: AdaptedEngine, tmp_path: Path) -> None:
    """Of a repository that stands alone, adapters and all."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    adapted.put(shelf, "french", 1)
    options = ComposeOptions(decoupled=False, copy=True, adapters=(shelf,), adapter_models=("french",))
    repository = compose(adapted.engine, tmp_path / "repository", options).path
    shutil.rmtree(shelf)
    with serving(repository, ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), drain_timeout=5)) as server:
        url = server.endpoints.grpc
        fields = {"text_input": PROMPT.text, "max_tokens": 12, "end_id": -1, "exclude_input_in_output": True}
        reply = unary(url, "french", **fields)
        assert reply.arrays["output_ids"].reshape(-1).tolist() == adapted.greedy(1, PROMPT.text, 12)
        assert reply.text == unary(url, "tensorrt_llm", lora_name="french", **fields).text
        status, message = refusal(url, "french", stream=True, **fields)
        assert status is StatusCode.INVALID_ARG
        assert "this model is not decoupled" in message
        server.stop()


def test_a_directory_that_is_not_there_is_told_at_once(adapted: AdaptedEngine, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"--adapters is .*nowhere"),
        serving(adapted.engine, ServerConfig(), adapters=(tmp_path / "nowhere",)),
    ):
        pass
