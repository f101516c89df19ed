"""`trierarch serve` with adapters, and what clients sent over a crash of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.adapted_engine import AdaptedEngine, adapted_engine
from support.eventually import eventually
from support.serve_process import serve
from support.triton_requests import ask
from trierarch.orchestrator.client import TritonClient
from trierarch.orchestrator.prompt import Prompt

PROMPT = Prompt(text="the ferry left at noon", max_tokens=12, adapter="french")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> AdaptedEngine:
    """An engine and two adapters."""
    return adapted_engine(tmp_path_factory.mktemp("adapted"), 2)


def test_an_engine_is_served_with_a_directory_and_a_crash_forgets_no_task(
    adapted: AdaptedEngine, tmp_path: Path
) -> None:
    adapted.put(tmp_path, "french", 1)
    with serve(adapted.engine, "--adapters", str(tmp_path)) as process:
        url = process.endpoints["grpc"]
        (answer,) = TritonClient(url).complete(PROMPT)
        assert list(answer.token_ids) == adapted.greedy(1, PROMPT.text, PROMPT.max_tokens)
        fields = {"text_input": PROMPT.text, "max_tokens": 12}
        (sent,) = ask(url, "tensorrt_llm", lora_task_id=7, **fields, **adapted.sent(2))
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
