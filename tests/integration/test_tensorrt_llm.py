"""The real Triton over TensorRT-LLM's executor, with a stand-in for the library: what clients see of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from support.checkpoints import random_checkpoint, small_tokenizer
from support.eventually import eventually
from support.metrics import kv_blocks, requests, wait_for_active
from support.packed_adapters import write_random_packed
from support.serve_process import ServeProcess, serve
from support.tensorrt_llm_engines import record_of, write_engine
from support.tensorrt_llm_stand_in import environment
from support.triton_requests import ask, refusal, stream
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import TOKENIZER_NAME, DType, EngineManifest, Lora, Target
from trierarch.orchestrator.client import TritonClient
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.prompt import Prompt
from trierarch.python_backend.executors.fake import next_token
from trierarch.python_backend.triton.status import StatusCode

PROMPT = "the ferry"
FATAL = "~"
NEVER_ENDS = {"end_id": -1, "exclude_input_in_output": True}


@dataclass(frozen=True)
class Served:
    """A server, and the shelf of its adapters."""

    process: ServeProcess
    manifest: EngineManifest
    shelf: Path

    @property
    def grpc(self) -> str:
        return self.process.endpoints["grpc"]

    @property
    def metrics(self) -> str:
        return self.process.endpoints["metrics"]


def expected(prompt: str, count: int, vocab_size: int) -> list[int]:
    """What the stand-in draws, which is what the fake runner does."""
    context = list(small_tokenizer().encode(prompt).ids)
    start = len(context)
    for _ in range(count):
        context.append(next_token(context, 3, vocab_size))
    return context[start:]


def make_engine(folder: Path) -> tuple[Path, EngineManifest]:
    """A tokenizer, and a manifest of TensorRT-LLM; a step of the stand-in takes a while, and FATAL is its end."""
    plain = folder / "plain"
    checkpoint = random_checkpoint("llama", folder / "checkpoint")
    build(BuildConfig(model=str(checkpoint), output=plain, dtype=DType.FLOAT32, kv_cache_bytes=64 << 20, compile=False))
    manifest = EngineManifest.load(plain)
    engine = folder / "engine"
    engine.mkdir()
    (engine / TOKENIZER_NAME).write_bytes((plain / TOKENIZER_NAME).read_bytes())
    (fatal,) = small_tokenizer().encode(FATAL).ids
    changes = {
        "target": Target.TENSORRT_LLM,
        "tensorrt_llm": record_of("1.2", kv_cache_config={"event_buffer_max_size": 64}),
        "lora": Lora(max_rank=8, max_adapters=2),
        "speculation": None,
        "files": {TOKENIZER_NAME: manifest.files[TOKENIZER_NAME]},
    }
    manifest = manifest.model_copy(update=changes)
    return write_engine(engine, manifest, step_seconds=0.01, fatal=fatal), manifest


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tensorrt_llm")
    engine, manifest = make_engine(folder)
    shelf = folder / "shelf"
    shelf.mkdir()
    for number in range(3):
        write_random_packed(shelf, f"adapter{number}", manifest, seed=number)
    python = environment(folder / "environment", "1.2")
    command = (str(python), "-c", "from trierarch.orchestrator.cli import main; main()")
    with serve(engine, "--adapters", str(shelf), command=command) as process:
        yield Served(process, manifest, shelf)


def test_tokens_stream_as_they_are_drawn(served: Served) -> None:
    tokens: list[int] = []
    replies = 0
    for reply in stream(served.grpc, "tensorrt_llm", text_input=PROMPT, max_tokens=12, stream=True, **NEVER_ENDS):
        if "output_ids" in reply.arrays:
            tokens += reply.arrays["output_ids"].reshape(-1).tolist()
            replies += 1
    assert tokens == expected(PROMPT, 12, served.manifest.architecture.vocab_size)
    assert replies > 1


def test_adapters_by_name_have_their_own_answers(served: Served) -> None:
    fields = {"text_input": PROMPT, "max_tokens": 6, **NEVER_ENDS}
    names = ["adapter0", "adapter1", "adapter2", "adapter0"]
    answers = []
    for name in names:
        (reply,) = ask(served.grpc, "tensorrt_llm", lora_name=name, **fields)
        answers.append(tuple(reply.arrays["output_ids"].reshape(-1).tolist()))
    assert answers[0] == answers[3]
    assert len({*answers, tuple(expected(PROMPT, 6, served.manifest.architecture.vocab_size))}) == 4
    status, message = refusal(served.grpc, "tensorrt_llm", lora_name="nobody", **fields)
    assert status is StatusCode.INVALID_ARG
    assert "is not registered" in message


def test_a_client_that_leaves_gives_everything_back(served: Served) -> None:
    for _ in stream(served.grpc, "tensorrt_llm", text_input=PROMPT, max_tokens=200, stream=True, **NEVER_ENDS):
        break
    wait_for_active(served.metrics, 0)


def test_the_librarys_figures_are_on_the_metrics_page(served: Served) -> None:
    ask(served.grpc, "tensorrt_llm", text_input=PROMPT, max_tokens=4, **NEVER_ENDS)
    eventually(lambda: kv_blocks(served.metrics, "max") == 100, "the size of the KV cache")
    assert requests(served.metrics, "max") == 8
    page = Metrics.read(served.metrics)
    assert page.value("nv_trt_llm_runtime_memory_metrics", memory_type="gpu") == 1 << 30
    assert page.value("nv_trt_llm_inflight_batcher_metrics", inflight_batcher_specific_metric="micro_batch_id") == 3
    assert page.value("nv_trt_llm_general_metrics", general_type="iteration_counter") > 0


def test_logits_and_log_probs_of_a_prompt_are_its_own(served: Served) -> None:
    vocab_size, length = served.manifest.architecture.vocab_size, len(small_tokenizer().encode(PROMPT).ids)
    asked = {"return_context_logits": True, "return_generation_logits": True, "num_prompt_log_probs": 1}
    wishes = {f"retention_token_range_{name}": [value] for name, value in (("starts", 0), ("ends", -1))}
    for _ in range(2):  # whatever is cached by then
        (reply,) = ask(
            served.grpc,
            "tensorrt_llm",
            text_input=PROMPT,
            max_tokens=4,
            retention_token_range_priorities=[90],
            **asked,
            **wishes,
            **NEVER_ENDS,
        )
        assert reply.arrays["context_logits"].shape == (1, length, vocab_size)
        drawn = reply.arrays["generation_logits"]
        assert drawn.shape == (1, 1, 4, vocab_size)
        assert drawn.argmax(-1).reshape(-1).tolist() == reply.arrays["output_ids"].reshape(-1).tolist()
        assert len(reply.arrays["prompt_log_probs"]) == 1


def test_what_is_cached_is_told_in_order(served: Served) -> None:
    ask(served.grpc, "tensorrt_llm", text_input=PROMPT, max_tokens=9, **NEVER_ENDS)

    def told(since: int) -> list[dict[str, Any]]:
        (reply,) = ask(served.grpc, "tensorrt_llm", kv_events_since=since)
        return [json.loads(event) for event in reply.arrays["kv_events"]]

    eventually(lambda: any(event["kind"] == "stored" for event in told(0)), "an event of a block")
    events = told(0)
    assert [event["number"] for event in events] == list(range(len(events)))
    assert told(2)[: len(events) - 2] == events[2:]
    name = "trierarch_prefix_cache_blocks_total"
    eventually(lambda: Metrics.read(served.metrics).value(name, change="stored") > 0, "the count of stored blocks")


def test_a_request_beyond_the_release_is_refused_by_the_clients_own_name(served: Served) -> None:
    fields = {"text_input": PROMPT, "max_tokens": 4, **NEVER_ENDS}
    status, message = refusal(served.grpc, "tensorrt_llm", bad_words=["ferry"], **fields)
    assert status is StatusCode.INVALID_ARG
    assert "bad_words" in message
    assert "bans single tokens alone" in message


def test_the_end_of_the_engine_ends_every_stream_and_another_process_serves(served: Served) -> None:
    """Whoever comes after it finds that one behind the same addresses."""
    stubs = {stub.pid for stub in served.process.stubs()}
    running = stream(served.grpc, "tensorrt_llm", text_input=PROMPT, max_tokens=200, stream=True, **NEVER_ENDS)
    next(running)
    status, message = refusal(served.grpc, "tensorrt_llm", text_input=FATAL, max_tokens=4, **NEVER_ENDS)
    assert status is StatusCode.INTERNAL
    assert "CUDA error: an illegal memory access was encountered" in message
    with pytest.raises(InferenceServerException, match="the engine has failed"):
        for _ in running:
            pass

    def serves() -> bool:
        try:
            (answer,) = TritonClient(served.grpc).complete(Prompt(text=PROMPT, max_tokens=4))
        except Exception:  # noqa: BLE001 - whatever a server says that is going or coming
            return False
        return len(answer.token_ids) > 0

    eventually(serves, "an answer of the next process")
    assert not stubs & {stub.pid for stub in served.process.stubs()}
