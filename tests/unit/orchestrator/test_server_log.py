from __future__ import annotations

from pathlib import Path

from trierarch.orchestrator.server_log import failure, tail

LOAD_FAILURE = (
    "E1122 13:41:02.20 7468 model_lifecycle.cc:642] \"failed to load 'tensorrt_llm' version 1: Internal: "
    'EngineError: weights.safetensors is missing; rebuild the engine with: trierarch build"\n'
)


def test_a_model_that_did_not_load_tells_why(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("I1122 something\n" + LOAD_FAILURE + "I1122 something more\n")

    message = failure(log)

    assert message.startswith("model 'tensorrt_llm' did not load: ")
    assert "weights.safetensors is missing; rebuild the engine with: trierarch build" in message
    assert "\n" not in message


def test_any_other_end_shows_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))

    message = failure(log)

    assert "line 99" in message
    assert "line 79" not in message


def test_a_server_that_said_nothing_has_an_empty_tail(tmp_path: Path) -> None:
    assert tail(tmp_path / "server.log") == ""
