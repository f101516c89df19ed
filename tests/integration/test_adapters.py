"""Adapters through a real Triton: by name, by task, sent along, and as models of their own; and what is wrong with some."""

from __future__ import annotations

import os
import pickle
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from support.adapted_engine import AdaptedEngine, adapted_engine
from support.checkpoints import small_tokenizer
from support.eventually import eventually
from support.metrics import wait_until_idle
from support.triton_requests import ask, refusal, stream
from trierarch.ensembles.compose import ComposeOptions, compose
from trierarch.orchestrator import cli
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.server_config import ModelControl, ServerConfig
from trierarch.orchestrator.serving import serving
from trierarch.orchestrator.triton_server import TritonServer
from trierarch.python_backend.triton.status import StatusCode

TEXT_MODELS = ["tensorrt_llm", "ensemble", "tensorrt_llm_bls"]
PROMPT = "the ferry left at noon"
NUM_TOKENS = 12
NUM_ADAPTERS = 10
UNUSED = NUM_ADAPTERS + 1


@dataclass(frozen=True, slots=True)
class World:
    """A server, and where what it serves lies."""

    server: TritonServer
    adapted: AdaptedEngine
    shelf: Path
    """The operator's directory of adapters."""
    repository: Path

    @property
    def url(self) -> str:
        return self.server.endpoints.grpc

    def put(self, name: str, number: int) -> None:
        self.adapted.put(self.shelf, name, number)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An engine with two slots, and memory for three or four adapters; one is on the shelf."""
    folder = tmp_path_factory.mktemp("adapters")
    adapted = adapted_engine(folder, UNUSED)
    shelf, repository = folder / "shelf", folder / "repository"
    shelf.mkdir()
    adapted.put(shelf, "french", 1)
    options = ComposeOptions(adapters=(shelf,), adapter_models=("french",), adapter_upload_directory=folder / "uploads")
    compose(adapted.engine, repository, options)
    ports = Ports(http=0, grpc=0, metrics=0)
    with serving(repository, ServerConfig(ports=ports, drain_timeout=5, model_control=ModelControl.EXPLICIT)) as server:
        yield World(server, adapted, shelf, repository)
        server.stop()


@pytest.fixture(autouse=True)
def _idle(world: World) -> Iterator[None]:
    yield
    wait_until_idle(world.server.endpoints.metrics)


def greedy(world: World, number: int) -> list[int]:
    """The tokens that PEFT draws."""
    return world.adapted.greedy(number, PROMPT, NUM_TOKENS)


def tokens(world: World, model: str = "tensorrt_llm", prompt: str = PROMPT, **asked: Any) -> list[int]:
    """What the server draws, streamed or not."""
    fields = {"text_input": prompt, "max_tokens": NUM_TOKENS, "end_id": -1, "exclude_input_in_output": True}
    replies = ask(world.url, model, **(fields | asked))
    return [token for reply in replies if reply.arrays for token in reply.arrays["output_ids"].reshape(-1).tolist()]


def text(world: World, model: str, prompt: str = PROMPT, **asked: Any) -> str:
    fields = {"text_input": prompt, "max_tokens": NUM_TOKENS, "end_id": -1, "exclude_input_in_output": True}
    return "".join(reply.text for reply in ask(world.url, model, **(fields | asked)) if reply.arrays)


def test_it_draws_what_peft_draws(world: World) -> None:
    french = greedy(world, 1)
    assert tokens(world, lora_name="french") == french
    assert tokens(world, lora_name="french", stream=True) == french
    assert tokens(world) != french


@pytest.mark.parametrize("model", TEXT_MODELS)
@pytest.mark.parametrize("is_streaming", [False, True])
def test_every_door_takes_a_name(world: World, model: str, is_streaming: bool) -> None:
    french = text(world, "tensorrt_llm", lora_name="french", max_draft_tokens=0)
    assert text(world, model, lora_name="french", stream=is_streaming) == french
    assert text(world, model, stream=is_streaming) == text(world, "tensorrt_llm") != french


def test_adapters_and_the_base_model_in_one_batch_each_say_what_they_say_alone(world: World) -> None:
    """More adapters than slots, and than there is memory for, some of them guessing ahead, some drawing by chance."""
    for number in range(2, 7):
        world.put(f"mixed-{number}", number)
    names = ["", "french", *(f"mixed-{number}" for number in range(2, 7))]
    asked: list[dict[str, Any]] = [
        {
            "lora_name": name,
            "prompt": f"{PROMPT}, {place % 3}",
            "model": TEXT_MODELS[place % 3] if place % 2 else "tensorrt_llm",
            "stream": place % 2 == 0,
            **({"top_k": 0, "seed": place} if place % 4 == 3 else {}),
        }
        for place, name in enumerate(names * 4)
    ]
    alone = [text(world, max_draft_tokens=0, **fields) for fields in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(lambda fields: text(world, **fields), asked)) == alone
    assert len(set(alone)) > len(names)


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_a_task_is_unknown_until_its_weights_come(world: World, model: str) -> None:
    number = 2 + TEXT_MODELS.index(model)
    task = 100 + number
    status, message = refusal(world.url, model, text_input=PROMPT, max_tokens=4, lora_task_id=task)
    assert status is StatusCode.INVALID_ARG
    assert f"LoRA task {task} not found in cache. Please send LoRA weights with request" in message
    world.put("same", number)
    same = text(world, model, lora_name="same")
    assert text(world, model, lora_task_id=task, **world.adapted.sent(number)) == same
    assert text(world, model, lora_task_id=task) == same
    assert text(world, model, lora_name=str(task), lora_task_id=task) == same


def test_the_token_door_takes_what_the_contracts_client_sends(world: World) -> None:
    """All that inflight_batcher_llm_client.py sends with --lora-path and --lora-task-id, then with the id alone."""
    ids = small_tokenizer().encode(PROMPT).ids
    fields: dict[str, Any] = {
        "input_ids": ids,
        "input_lengths": len(ids),
        "request_output_len": NUM_TOKENS,
        "beam_width": 1,
        "temperature": 1.0,
        "streaming": True,
        "end_id": -1,
        "pad_id": 0,
        "runtime_top_k": 1,
        "runtime_top_p": 0.0,
        "lora_task_id": 500,
    }
    for sent in (world.adapted.sent(6), {}):
        replies = ask(world.url, "tensorrt_llm", **fields, **sent)
        drawn = [token for reply in replies for token in reply.arrays["output_ids"].reshape(-1).tolist()]
        assert drawn == greedy(world, 6)


def test_over_http_a_name_is_a_field(world: World) -> None:
    url = f"{world.server.endpoints.http}/v2/models/tensorrt_llm/generate"
    body = {"text_input": PROMPT, "max_tokens": NUM_TOKENS, "end_id": -1, "exclude_input_in_output": True}
    answer = httpx.post(url, json=body | {"lora_name": "french"}, timeout=60, trust_env=False).json()
    assert answer["output_ids"] == greedy(world, 1)
    refused = httpx.post(url, json=body | {"lora_name": "never"}, timeout=60, trust_env=False)
    assert refused.status_code == 400
    assert "lora_name is 'never': is not registered" in refused.json()["error"]


def test_a_task_that_was_sent_once_is_never_forgotten(world: World) -> None:
    """Ten tasks, two slots, memory for three or four; each is sent once, and asked for by its id alone twice."""
    first = {
        number: tokens(world, lora_task_id=200 + number, **world.adapted.sent(number))
        for number in range(1, NUM_ADAPTERS + 1)
    }
    assert first[7] == greedy(world, 7)
    assert len({tuple(answer) for answer in first.values()}) == NUM_ADAPTERS
    for _ in range(2):
        with ThreadPoolExecutor(NUM_ADAPTERS) as pool:
            again = dict(
                zip(first, pool.map(lambda number: tokens(world, lora_task_id=200 + number), first), strict=True)
            )
        assert again == first
    evictions = "trierarch_adapter_evictions_total"
    assert Metrics.read(world.server.endpoints.metrics).value(evictions, model="tensorrt_llm") >= NUM_ADAPTERS


@contextmanager
def running_stream(world: World) -> Iterator[None]:
    """A stream of an adapter that must not notice what others do."""
    fields = {"text_input": PROMPT, "max_tokens": 200, "end_id": -1, "lora_name": "french", "max_draft_tokens": 0}
    alone = [reply.text for reply in ask(world.url, "tensorrt_llm", **fields, exclude_input_in_output=True)]
    running = stream(world.url, "tensorrt_llm", stream=True, **fields)
    pieces = [next(running).text]
    yield
    pieces += [reply.text for reply in running if reply.arrays]
    assert ["".join(pieces)] == alone


@contextmanager
def kept_busy(world: World) -> Iterator[None]:
    """An adapter runs again and again, for as long as it is looked at."""
    is_over = threading.Event()

    def ask_on() -> None:
        while not is_over.is_set():
            tokens(world, lora_name="french", max_tokens=200)

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask_on)
        try:
            yield
        finally:
            is_over.set()
        asking.result()


def bad_files(world: World) -> dict[str, str]:
    """Name -> what its refusal says, of files on the shelf that are no adapters."""
    good = (world.shelf / "french.safetensors").read_bytes()
    shelf = world.shelf
    (shelf / "cut.safetensors").write_bytes(good[: len(good) // 2])
    (shelf / "empty.safetensors").write_bytes(b"")
    (shelf / "pickled.safetensors").write_bytes(pickle.dumps({"layers.0.q.a": [1.0]}))
    world.put("altered", UNUSED)
    altered = bytearray((shelf / "altered.safetensors").read_bytes())
    altered[-1] ^= 1
    (shelf / "altered.safetensors").write_bytes(altered)
    (shelf / "outside.safetensors").unlink(missing_ok=True)
    os.symlink(world.adapted.peft / "1" / "adapter_model.safetensors", shelf / "outside.safetensors")
    peft = shelf / "bin"
    peft.mkdir(exist_ok=True)
    (peft / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (peft / "adapter_model.bin").write_bytes(pickle.dumps({}))
    return {
        "cut": "cannot be read",
        "empty": "cannot be read",
        "pickled": "cannot be read",
        "altered": "was altered",
        "outside": "leads out of its adapter directory",
        "bin": "is not registered",
        "../../../etc/passwd": "is no name",
        "/etc/passwd": "is no name",
        "never": "is not registered",
    }


def test_what_is_no_adapter_is_refused_by_name_and_nobody_else_notices(world: World) -> None:
    with running_stream(world):
        for name, says in bad_files(world).items():
            status, message = refusal(world.url, "tensorrt_llm", text_input=PROMPT, max_tokens=4, lora_name=name)
            assert status is StatusCode.INVALID_ARG
            assert message.startswith("lora_name is ")
            assert says in message
            assert str(world.shelf) not in message


def test_tensors_that_are_no_adapter_are_refused_by_name_and_nobody_else_notices(world: World) -> None:
    good = world.adapted.sent(1)
    weights, config = good["lora_weights"], good["lora_config"]
    nan = weights.copy()
    nan[0, 5, 17] = np.nan
    steep, far, foreign = config.copy(), config.copy(), config.copy()
    steep[0, 0, 2], far[0, 0, 1], foreign[0, 0, 0] = 9, 3, 13
    cases: dict[str, dict[str, Any]] = {
        "lora_weights[5] is 'NaN or infinity'": {"lora_weights": nan},
        "lora_config[0] is 'adapter size 9'": {"lora_config": steep},
        "lora_config[0] is 'layer 3'": {"lora_config": far},
        "lora_config[0] is 'module 13 moe_h_to_4h'": {"lora_config": foreign},
        "lora_weights[0] is 8": {"lora_weights": weights[:, :, :8].copy()},
        "lora_task_id is 0": {"lora_task_id": 0},
        "lora_name is 'french': contradicts lora_task_id": {"lora_name": "french"},
    }
    with running_stream(world):
        for says, wrong in cases.items():
            asked = {"text_input": PROMPT, "max_tokens": 4, "lora_task_id": 300} | good | wrong
            status, message = refusal(world.url, "tensorrt_llm", **asked)
            assert (status, message[: len(says)]) == (StatusCode.INVALID_ARG, says)
        status, message = refusal(world.url, "tensorrt_llm", text_input=PROMPT, max_tokens=4, lora_task_id=300)
        assert "LoRA task 300 not found" in message


def test_another_version_takes_the_name_over_and_who_runs_keeps_his(world: World) -> None:
    world.put("changing", 2)
    before = tokens(world, lora_name="changing")
    fields = {"text_input": PROMPT, "max_tokens": 100, "end_id": -1, "lora_name": "changing", "max_draft_tokens": 0}
    whole = text(world, "tensorrt_llm", **fields)
    running = stream(world.url, "tensorrt_llm", stream=True, **fields)
    pieces = [next(running).text]
    world.put("changing", 3)
    after = tokens(world, lora_name="changing")
    pieces += [reply.text for reply in running if reply.arrays]
    assert "".join(pieces) == whole
    assert (before, after) == (greedy(world, 2), greedy(world, 3))
    (world.shelf / "changing.safetensors").unlink()
    status, message = refusal(world.url, "tensorrt_llm", text_input=PROMPT, max_tokens=4, lora_name="changing")
    assert status is StatusCode.INVALID_ARG
    assert "is not registered" in message


def test_a_client_replaces_its_own_task_and_never_the_operators(world: World) -> None:
    assert tokens(world, lora_task_id=400, **world.adapted.sent(2)) == greedy(world, 2)
    assert tokens(world, lora_task_id=400, **world.adapted.sent(3)) == greedy(world, 3)
    assert tokens(world, lora_task_id=400) == greedy(world, 3)
    world.put("401", 4)
    assert tokens(world, lora_task_id=401, **world.adapted.sent(4)) == tokens(world, lora_task_id=401)
    status, message = refusal(
        world.url, "tensorrt_llm", text_input=PROMPT, max_tokens=4, lora_task_id=401, **world.adapted.sent(5)
    )
    assert status is StatusCode.INVALID_ARG
    assert "adapter 401 is the operator's" in message
    assert tokens(world, lora_task_id=401) == greedy(world, 4)


@pytest.mark.parametrize("is_streaming", [False, True])
def test_an_adapter_is_a_model(world: World, is_streaming: bool) -> None:
    by_name = tokens(world, lora_name="french")
    assert tokens(world, "french", stream=is_streaming) == by_name
    assert tokens(world, "french", stream=is_streaming, lora_name="french") == by_name
    ids = np.array([small_tokenizer().encode(PROMPT).ids], np.int32)
    replies = ask(
        world.url,
        "french",
        input_ids=ids,
        request_output_len=NUM_TOKENS,
        end_id=-1,
        exclude_input_in_output=True,
        streaming=is_streaming,
    )
    answer = [token for reply in replies if reply.arrays for token in reply.arrays["output_ids"].reshape(-1).tolist()]
    assert answer == by_name
    assert text(world, "french", stream=is_streaming) == text(world, "tensorrt_llm", lora_name="french")
    two = ask(
        world.url, "french", text_input=PROMPT, max_tokens=4, num_return_sequences=2, top_k=0, seed=1, stream=True
    )
    assert two[-1].is_final
    assert {int(reply.arrays["sequence_index"][0, 0]) for reply in two if reply.arrays} == {0, 1}


def test_a_model_of_an_adapter_takes_no_other(world: World) -> None:
    cases: dict[str, dict[str, Any]] = {
        "lora_name is 'other': this model is adapter 'french'": {"lora_name": "other"},
        "lora_task_id is '5': this model is adapter 'french'": {"lora_task_id": 5},
        "lora_weights is ": {"lora_task_id": 5, **world.adapted.sent(1)},
        "max_tokens is 0": {"max_tokens": 0},
    }
    for says, wrong in cases.items():
        status, message = refusal(world.url, "french", **({"text_input": PROMPT, "max_tokens": 4} | wrong))
        assert (status, message[: len(says)]) == (StatusCode.INVALID_ARG, says)


def test_a_model_of_an_adapter_stops_when_its_client_goes_or_says_so(world: World) -> None:
    metrics = world.server.endpoints.metrics
    fields = {"text_input": PROMPT, "max_tokens": 200, "end_id": -1, "max_draft_tokens": 0}
    running = stream(world.url, "french", stream=True, **fields)
    next(running)
    running.close()
    wait_until_idle(metrics)
    running = stream(world.url, "french", request_id="endless", stream=True, **fields)
    next(running)
    (stopped,) = ask(world.url, "french", request_id="endless", stop=True)
    assert not stopped.arrays
    *_, last = running
    assert last.is_final
    assert not last.arrays


def command(*arguments: object) -> int:
    """Exit status of `trierarch adapters ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["adapters", *map(str, arguments)])
    return int(exit_.value.code or 0)


def test_models_of_adapters_come_and_go_while_others_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    repository, url = ("--repository", world.repository), ("--url", world.server.endpoints.http)
    with running_stream(world):
        assert command("load", "italian", *repository, *url) == 1
        assert "italian" in (said := capsys.readouterr().err)
        assert "is not registered" in said
        assert "Traceback" not in said
        assert "At:" not in said
        assert not (world.repository / "italian").exists()
        source = ("--from", world.adapted.peft / "5")
        assert command("load", "italian", *source, *repository, *url) == 0
        assert tokens(world, "italian") == tokens(world, lora_name="italian") == greedy(world, 5)
        capsys.readouterr()
        assert command("status", *url) == 0
        shown = capsys.readouterr().out
        assert re.search(r"french +READY", shown)
        assert re.search(r"italian +READY", shown)
        assert "tensorrt_llm" not in shown
        assert command("unload", "italian", *repository, *url) == 0
        assert not (world.repository / "italian").exists()
        ready = f"{world.server.endpoints.http}/v2/models/italian/ready"
        eventually(lambda: httpx.get(ready, trust_env=False, timeout=60).status_code == 400, "the model gone")
        assert tokens(world, lora_name="italian") == greedy(world, 5)


def test_metrics(world: World) -> None:
    metrics = world.server.endpoints.metrics
    labels = {"model": "tensorrt_llm", "version": "1"}
    with kept_busy(world):
        eventually(lambda: "french" in running_adapters(metrics), "the name of what runs")
        assert {sample["max_lora"] for sample in lora_info(metrics)} == {"2"}
        eventually(lambda: Metrics.read(metrics).value("trierarch_adapters", status="active", **labels) >= 1, "active")
    eventually(lambda: [sample["running_lora_adapters"] for sample in lora_info(metrics)] == [""], "nothing running")
    page = Metrics.read(metrics)
    assert page.value("trierarch_adapters", status="registered", **labels) >= 1
    assert 1 <= page.value("trierarch_adapters", status="loaded", **labels) <= 4
    assert page.value("trierarch_adapter_bytes", **labels) > 0
    assert page.value("trierarch_adapter_loads_total", **labels) >= 1
    assert page.value("trierarch_adapter_load_seconds_count", **labels) >= 1


def running_adapters(url: str) -> set[str]:
    return {name for sample in lora_info(url) for name in sample["running_lora_adapters"].split(",")}


def lora_info(url: str) -> list[dict[str, str]]:
    """Labels of the lines of vLLM's gauge; each is from the last minute."""
    page = httpx.get(url, trust_env=False, timeout=60).text
    lines = [line for line in page.splitlines() if line.startswith("vllm:lora_requests_info{")]
    samples = []
    for line in lines:
        labels, _, value = line.removeprefix("vllm:lora_requests_info{").rpartition("} ")
        assert abs(float(value) - time.time()) < 60
        samples.append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))
    return samples
