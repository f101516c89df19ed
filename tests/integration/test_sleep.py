"""`trierarch serve --idle-timeout` with a real Triton that sleeps, wakes and is killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
import tritonclient.grpc

from support.eventually import eventually
from support.gateway import whole_page
from support.metrics import kv_blocks, wait_for_active
from support.serve_process import FREE_PORTS, TRIERARCH, ServeProcess, lives, serve
from trierarch.benchmarks.ordeal import Judge
from trierarch.benchmarks.ordeal_session import Fate, Ordeal, endure
from trierarch.benchmarks.sleeping_server import sleeping_server
from trierarch.orchestrator.client import StreamBroken
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.prompt import Prompt, join
from trierarch.orchestrator.triton_server import TritonServer

SHORT = Prompt(text="The capital of France is", max_tokens=8)
LONG = Prompt(text="1 2 3 4 5 6 7 8 9 10 11 12", max_tokens=1000)
SLEEPY = ("--idle-timeout", "500ms")
MOST_IDLE_BYTES = 120_000_000


def figure(server: ServeProcess, name: str, **labels: str) -> float:
    return Metrics.read(server.endpoints["metrics"]).value(f"trierarch_sleep_{name}", **labels)


def wait_until_asleep(server: ServeProcess) -> None:
    eventually(lambda: figure(server, "phase", phase="asleep") == 1, "asleep")


def test_it_sleeps_and_wakes_behind_both_doors(demo_engine: Path) -> None:
    with serve(demo_engine, *SLEEPY) as server:
        (first,) = server.client.complete(SHORT)
        metadata = httpx.get(f"{server.endpoints['http']}/v2/models/tensorrt_llm", trust_env=False, timeout=60).json()
        wait_until_asleep(server)
        wakes = figure(server, "wakes_total")
        assert server.family() == []
        assert psutil.Process(server.process.pid).memory_info().rss < MOST_IDLE_BYTES

        over_grpc = tritonclient.grpc.InferenceServerClient(server.endpoints["grpc"])
        assert over_grpc.is_server_live()
        assert over_grpc.is_server_ready()
        assert over_grpc.is_model_ready("tensorrt_llm")
        assert not over_grpc.is_model_ready("another")
        assert httpx.get(f"{server.endpoints['http']}/v2/health/ready", trust_env=False, timeout=60).status_code == 200
        again = httpx.get(f"{server.endpoints['http']}/v2/models/tensorrt_llm", trust_env=False, timeout=60).json()
        assert again == metadata
        assert figure(server, "wakes_total") == wakes, "none of that woke it"

        with server.client.stream(SHORT) as chunks:
            assert join(chunks) == [first]
        wait_until_asleep(server)
        body = {"text_input": SHORT.text, "max_tokens": 8, "exclude_input_in_output": True}
        url = f"{server.endpoints['http']}/v2/models/tensorrt_llm/generate"
        assert httpx.post(url, json=body, timeout=60, trust_env=False).json()["text_output"] == first.text
        assert figure(server, "wakes_total") == wakes + 2
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "of always on" in server.said
    assert f"{wakes + 2:.0f} wakes" in server.said


def test_prefixes_that_were_hot_are_warm_after_a_wake_and_the_answer_is_the_same(demo_engine: Path) -> None:
    prompt = replace(SHORT, text="You are a careful assistant. " * 30 + SHORT.text)
    with serve(demo_engine, *SLEEPY, "--log-level", "info") as server:
        answer = server.client.complete(prompt)
        wait_until_asleep(server)
        with server.client.stream(LONG) as keeps_it_awake:
            next(iter(keeps_it_awake))
            assert server.client.complete(prompt) == answer
            eventually(lambda: kv_blocks(server.endpoints["metrics"], "reused") >= 150 // 16, "blocks reused")
        log = Path(server.endpoints["log"]).read_text()
        assert "restored" in log


def test_two_engines_take_turns_where_there_is_room_for_one(demo_engine: Path, demo_engine_float32: Path) -> None:
    body = {"text_input": SHORT.text, "max_tokens": 8, "exclude_input_in_output": True}
    with serve(demo_engine, str(demo_engine_float32), "--memory-budget", "1MB", "--idle-timeout", "5m") as server:
        url = f"{server.endpoints['http']}/v2/models/tensorrt_llm/generate"
        for path in (demo_engine, demo_engine_float32, demo_engine):
            headers = {"x-trierarch-engine": path.name}
            answer = httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False).raise_for_status().json()
            assert "Paris" in answer["text_output"]
            assert figure(server, "phase", engine=path.name, phase="awake") == 1
            assert len(server.named("tritonserver")) == 1
        openai = server.endpoints["openai"]
        models = httpx.get(f"{openai}/v1/models", trust_env=False, timeout=60).json()["data"]
        assert [model["id"] for model in models] == [demo_engine.name, demo_engine_float32.name], "whoever is awake"
        for path in (demo_engine_float32, demo_engine):
            asked = {"model": path.name, "prompt": SHORT.text, "max_tokens": 8, "temperature": 0}
            answer = httpx.post(f"{openai}/v1/completions", json=asked, timeout=60, trust_env=False).raise_for_status()
            assert "Paris" in answer.json()["choices"][0]["text"]
            page = Metrics.parse(whole_page(openai))
            assert page.value("trierarch_sleep_phase", engine=path.name, phase="awake") == 1
            assert page.value("nv_trt_llm_request_metrics", engine=path.name, request_type="max") > 0
            assert page.value("trierarch_gateway_engine_ready", engine=path.name) == 1


def test_a_stub_killed_under_load_breaks_who_was_midway_and_nobody_else(demo_engine: Path) -> None:
    with serve(demo_engine, "--idle-timeout", "5m") as server:
        streams = [server.client.stream(LONG) for _ in range(3)]
        firsts = [next(iter(stream)) for stream in streams]
        wait_for_active(server.endpoints["metrics"], 3)
        max(server.stubs(), key=lambda stub: stub.memory_info().rss).kill()

        (answer,) = server.client.complete(SHORT)

        for stream, first in zip(streams, firsts, strict=True):
            assert first.text
            with pytest.raises(StreamBroken), stream:
                list(stream)
        assert "Paris" in answer.text
        assert figure(server, "deaths_total") == 1
        assert figure(server, "refused_total") == 0


def test_sigterm_lets_open_streams_finish_and_a_second_one_does_not(demo_engine: Path) -> None:
    with serve(demo_engine, *SLEEPY, "--drain-timeout", "100") as server:
        stream = server.client.stream(replace(LONG, max_tokens=60))
        chunks = iter(stream)
        heard = [next(chunks)]
        server.process.send_signal(signal.SIGTERM)
        heard += list(chunks)
        (answer,) = join(heard)
        assert (answer.num_output_tokens, answer.finish_reason) == (60, "length")
        assert server.wait() == 0
    with serve(demo_engine, *SLEEPY) as server, server.client.stream(LONG) as stream:
        next(iter(stream))
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: "open streams" in server.said, "word of the drain")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130
        with pytest.raises(StreamBroken):
            list(stream)


def test_a_serve_that_is_killed_leaves_no_process_behind(demo_engine: Path) -> None:
    with serve(demo_engine, "--idle-timeout", "5m") as server:
        family = server.family()
        assert len(family) >= 3, "a guardian, a server, stubs"
        server.process.kill()
        eventually(lambda: not any(map(lives, family)), "an end")


def test_what_cannot_be_had_together_is_one_line(demo_engine: Path) -> None:
    for options, word in (
        (("--idle-timeout", "soon"), "duration"),
        (("--idle-timeout", "0"), "--idle-timeout"),
        (("--idle-timeout", "5s", "--model-control", "explicit"), "--model-control"),
        ((str(demo_engine),), "--idle-timeout"),
        ((str(demo_engine), "--idle-timeout", "5s"), "rename"),
    ):
        command = [TRIERARCH, "serve", str(demo_engine), *FREE_PORTS, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert word in done.stderr


def test_an_occupied_port_is_told_before_anything_starts(triton: TritonServer, demo_engine: Path) -> None:
    occupied = str(triton.config.ports.http)
    command = [TRIERARCH, "serve", str(demo_engine), *FREE_PORTS, "--http-port", occupied, *SLEEPY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"port {occupied}" in done.stderr


@pytest.mark.timeout(600)
def test_no_request_is_lost_in_some_cycles_with_a_real_triton(demo_engine: Path) -> None:
    ordeal = Ordeal(num_cycles=6, seed=11, kill_share=0.8, spread=4.0, idle_timeout=0.3)

    async def story() -> None:
        with sleeping_server(demo_engine, ordeal.idle_timeout, "--drain-timeout=5") as server:
            judge = await Judge.of(server)
            outcome = await endure(ordeal, judge.ask, judge.kill)
            assert not outcome.losses
            assert outcome.fates[Fate.REFUSED] == 0
            assert outcome.fates[Fate.ANSWERED] > 0
            assert outcome.num_kills > 0

    asyncio.run(story())
