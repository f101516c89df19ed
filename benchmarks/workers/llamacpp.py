"""llama.cpp: its server, asked over HTTP on the loopback, one connection a prompt, not streamed."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final

from trierarch.benchmarks.workers.protocol import MAX_BATCH_SIZE, MAX_SEQ_LEN, NUM_THREADS, Ready, TokenIds, serve

SERVER: Final = Path(sys.prefix).parent / "build" / "bin" / "llama-server"
HOST: Final = "127.0.0.1"
READY_SECONDS: Final = 120
OPTIONS: Final = {
    "--threads": str(NUM_THREADS),
    "--threads-batch": str(NUM_THREADS),
    "--parallel": str(MAX_BATCH_SIZE),
    "--ctx-size": str(MAX_BATCH_SIZE * MAX_SEQ_LEN),
    "--batch-size": "2048",
    "--ubatch-size": "512",
    # A KV cache a slot: a unified one is a third slower with 32 streams and no faster with one.
    "--no-kv-unified": None,
    # No host copies of old prompts: 8 GiB by default, which no other engine is given.
    "--cache-ram": "0",
    "--no-webui": None,
}


class LlamaCppWorker:
    """One llama-server process and a thread for each stream it may have."""

    options: ClassVar[Mapping[str, str | None]] = OPTIONS

    def __init__(self, model: Path) -> None:
        """Start the server and wait until it has loaded `model`."""
        self._port = _free_port()
        command = [str(SERVER), "--model", str(model), "--host", HOST, "--port", str(self._port)]
        command += [word for option, value in self.options.items() for word in (option, value) if word is not None]
        self._started = time.monotonic()
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        self._threads = ThreadPoolExecutor(MAX_BATCH_SIZE)
        self._wait_ready()

    @property
    def ready(self) -> Ready:
        """The build, and the server as the process that counts."""
        build, _, _ = self._call("GET", "/props")["build_info"].partition(
            "-"
        )  # a commit follows, of the wrong repository
        settings = {key.lstrip("-"): value for key, value in self.options.items()}
        return Ready(build, settings, self._server.pid, self._started)

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """One request a prompt, all at once."""
        return list(self._threads.map(lambda prompt: self._complete(prompt, num_output_tokens), prompts))

    def close(self) -> None:
        """End the server."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._server.terminate()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _complete(self, prompt: TokenIds, num_output_tokens: int) -> TokenIds:
        body = {
            "prompt": prompt,
            "n_predict": num_output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": True,
            "return_tokens": True,
        }
        token_ids: TokenIds = self._call("POST", "/completion", body)["tokens"]
        return token_ids

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection(HOST, self._port)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            if response.status != http.HTTPStatus.OK:
                raise RuntimeError(f"{path} answered {response.status}: {content.decode(errors='replace')[:500]}")
            return json.loads(content)
        finally:
            connection.close()

    def _wait_ready(self) -> None:
        while time.monotonic() - self._started < READY_SECONDS:
            if self._server.poll() is not None:
                raise RuntimeError(f"llama-server ended with status {self._server.returncode}")
            try:
                self._call("GET", "/health")
                return
            except (OSError, RuntimeError):
                time.sleep(0.01)
        raise RuntimeError(f"llama-server was not ready after {READY_SECONDS} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    serve(LlamaCppWorker)
