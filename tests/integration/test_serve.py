"""`trierarch serve`: what it tells, how it ends, and what it survives."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import httpx

from support.eventually import eventually
from support.metrics import wait_for_active, wait_until_idle
from support.serve_process import FREE_PORTS, TRIERARCH, lives, serve
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import TrierarchError
from trierarch.builder.manifest import WEIGHTS_NAME
from trierarch.orchestrator.client import StreamBroken, TritonClient
from trierarch.orchestrator.prompt import Chunk, Prompt, join
from trierarch.orchestrator.triton_server import TritonServer

LONG = Prompt(text="1 2 3 4 5 6 7 8 9 10 11 12", max_tokens=1000)
"""The demo model counts on, for longer than any test lasts."""
SHORT = Prompt(text="The capital of France is", max_tokens=8)


class Reader(threading.Thread):
    """Reads one stream to its end."""

    def __init__(self, client: TritonClient, prompt: Prompt) -> None:
        super().__init__()
        self.stream = client.stream(prompt)
        self.chunks: list[Chunk] = []
        self.error: TrierarchError | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.stream as chunks:
                self.chunks.extend(chunks)
        except TrierarchError as error:
            self.error = error


def trierarch(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([TRIERARCH, *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == status, done.stderr
    return done


def test_generate_prints_the_answer_and_its_figures(triton: TritonServer) -> None:
    done = trierarch("generate", SHORT.text, "--raw", "--url", triton.endpoints.grpc, "--max-tokens", "8")

    assert "Paris" in done.stdout
    assert "tokens/s" in done.stderr


def test_streamed_or_not_and_over_either_protocol_the_answer_is_the_same(
    triton: TritonServer, client: TritonClient
) -> None:
    with client.stream(SHORT) as chunks:
        (streamed,) = join(chunks)
    (whole,) = client.complete(SHORT)
    body = {"text_input": SHORT.text, "max_tokens": SHORT.max_tokens, "exclude_input_in_output": True}
    url = f"{triton.endpoints.http}/v2/models/tensorrt_llm/generate"
    over_http = httpx.post(url, json=body, timeout=60, trust_env=False).raise_for_status().json()

    assert streamed == whole
    assert over_http["text_output"] == whole.text
    assert whole.num_output_tokens == SHORT.max_tokens


def test_generate_for_scripts_is_json(triton: TritonServer) -> None:
    done = trierarch("generate", SHORT.text, "--raw", "--url", triton.endpoints.grpc, "--max-tokens", "4", "--json")

    shown = json.loads(done.stdout)
    assert shown["answers"][0]["finish_reason"] == "length"
    assert shown["answers"][0]["num_output_tokens"] == 4
    assert shown["figures"]["tokens_per_second"] > 0


def test_a_prompt_the_server_refuses_is_one_line(triton: TritonServer) -> None:
    done = trierarch("generate", "hello", "--url", triton.endpoints.grpc, "--max-tokens", "0", status=1)

    assert done.stderr.count("\n") == 1
    assert "max_tokens" in done.stderr


def test_an_interrupted_client_leaves_no_request_behind(triton: TritonServer) -> None:
    command = [TRIERARCH, "generate", LONG.text, "--raw", "--url", triton.endpoints.grpc, "--max-tokens", "1000"]
    for ending in (signal.SIGINT, signal.SIGKILL):
        wait_until_idle(triton.endpoints.metrics)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.read(1), "the answer has begun"
            process.send_signal(ending)
            assert process.wait(60) == (130 if ending == signal.SIGINT else -signal.SIGKILL)
        wait_until_idle(triton.endpoints.metrics)


def test_serve_tells_its_endpoints_with_lines_to_paste(demo_engine: Path) -> None:
    command = [TRIERARCH, "serve", str(demo_engine), *FREE_PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = ""
        try:
            while "curl" not in shown:
                line = process.stdout.readline()
                assert line, "serve ended early"
                shown += line
            (curl,) = [line for line in shown.splitlines() if "curl" in line]
            asked = subprocess.run(f"{curl} -s", shell=True, capture_output=True, text=True, timeout=100, check=True)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()  # else leaving the block would wait for a server that nobody stopped

    assert asked.stdout.startswith("data: {")
    assert "tokens of KV" in shown
    assert "trierarch generate" in shown


def test_sigterm_lets_open_streams_finish(demo_engine: Path) -> None:
    with serve(demo_engine, "--drain-timeout", "100") as server:
        reader = Reader(server.client, replace(LONG, max_tokens=60))
        eventually(lambda: len(reader.chunks) > 2, "a stream under way")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        reader.join()

    assert reader.error is None
    (answer,) = join(reader.chunks)
    assert (answer.num_output_tokens, answer.finish_reason) == (60, "length")
    assert "open streams have 100 s to finish" in server.said


def test_a_second_interrupt_ends_open_streams_at_once(demo_engine: Path) -> None:
    with serve(demo_engine) as server:
        reader = Reader(server.client, LONG)
        eventually(lambda: len(reader.chunks) > 2, "a stream under way")
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: "open streams" in server.said, "word of the drain")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130
        reader.join()

    assert isinstance(reader.error, StreamBroken)


def test_a_stub_and_then_a_server_killed_under_load_are_replaced(demo_engine: Path) -> None:
    with serve(demo_engine) as server:
        readers = [Reader(server.client, LONG) for _ in range(4)]
        wait_for_active(server.endpoints["metrics"], 4)
        busiest = max(server.stubs(), key=lambda stub: stub.memory_info().rss)
        busiest.kill()
        for reader in readers:
            reader.join()
        eventually(lambda: server.said.count("serving again") == 1, "serving again")
        (answer,) = server.client.complete(SHORT)
        (tritonserver,) = server.named("tritonserver")
        tritonserver.kill()
        eventually(lambda: server.said.count("serving again") == 2, "serving again after the server's own death")
        assert server.client.complete(SHORT) == [answer]

    assert all(isinstance(reader.error, StreamBroken) for reader in readers)
    assert all("went away" in str(reader.error) for reader in readers)
    assert f"stub process {busiest.pid} died" in server.said
    assert "Paris" in answer.text


def test_a_serve_that_is_killed_leaves_no_process_behind(demo_engine: Path) -> None:
    with serve(demo_engine) as server:
        family = server.family()
        assert len(family) >= 3, "a guardian, a server, stubs"
        reader = Reader(server.client, LONG)
        eventually(lambda: len(reader.chunks) > 2, "a stream under way")
        server.process.kill()
        eventually(lambda: not any(map(lives, family)), "an end to the server's processes")
        reader.join()

    assert isinstance(reader.error, StreamBroken)


def test_an_occupied_port_is_told_before_anything_starts(triton: TritonServer, demo_engine: Path) -> None:
    occupied = str(triton.config.ports.grpc)

    done = trierarch("serve", str(demo_engine), *FREE_PORTS, "--grpc-port", occupied, status=1)

    assert done.stderr.count("\n") == 1
    assert f"port {occupied}" in done.stderr
    assert "--grpc-port" in done.stderr


def test_an_engine_that_was_cut_short_is_one_line(demo_engine: Path, tmp_path: Path) -> None:
    engine = shutil.copytree(demo_engine, tmp_path / "engine")
    with (engine / WEIGHTS_NAME).open("r+b") as weights:
        weights.truncate(1000)

    done = trierarch("serve", str(engine), *FREE_PORTS, status=1)

    assert done.stderr.count("\n") == 1
    assert "rebuild the engine" in done.stderr


def test_a_kv_budget_beyond_the_memory_is_one_line(demo_engine: Path, tmp_path: Path) -> None:
    from support.demo import demo_checkpoint

    engine = tmp_path / "engine"
    build(BuildConfig(model=str(demo_checkpoint()), output=engine, kv_cache_bytes=1 << 50))

    done = trierarch("serve", str(engine), *FREE_PORTS, status=1)

    assert done.stderr.count("\n") == 1
    assert "did not load" in done.stderr
    assert "kv" in done.stderr.lower()


def test_the_second_demo_reuses_what_the_first_built(tmp_path: Path) -> None:
    from support.demo import demo_checkpoint

    engine, picture = tmp_path / "engine", tmp_path / "demo.svg"
    command = ("demo", "--engine", str(engine), "--model", str(demo_checkpoint()), "--max-tokens", "8")

    first = trierarch(*command)
    stamp = (engine / "engine.json").stat().st_mtime_ns
    second = trierarch(*command, "--svg", str(picture))

    assert (engine / "engine.json").stat().st_mtime_ns == stamp
    assert "earlier, at" not in " ".join(first.stdout.split())
    assert "earlier, at" in " ".join(second.stdout.split())
    assert "tokens/s" in second.stdout
    assert "<svg" in picture.read_text()
    assert "@font-face" not in picture.read_text(), "a picture in a README loads nothing"
