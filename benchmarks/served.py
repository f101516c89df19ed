"""A `trierarch serve` with its gateway, and processes that load it; each ended with its `with` block."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from trierarch.builder.errors import ResourceError

COMMAND: Final = Path(sys.executable).with_name("trierarch")
STOP_SECONDS: Final = 20.0


def start_server(engine: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """`trierarch serve` on free ports, with `engine` loaded: the process, and where it listens.

    Raises:
        ResourceError: it ended.
    """
    ports = [f"--{service}-port=0" for service in ("http", "grpc", "metrics", "gateway")]
    process = subprocess.Popen(
        [str(COMMAND), "serve", str(engine), *ports, "--json", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    announcement = process.stdout.readline()
    if not announcement:
        raise ResourceError(f"trierarch serve ended with status {process.wait()}")
    endpoints: dict[str, str] = json.loads(announcement)
    return process, endpoints


class Served:
    """One server of one engine, on free ports."""

    def __init__(self, engine: Path) -> None:
        """Start it, and wait until it has loaded `engine`. Raise ResourceError where it does not."""
        self._process, told = start_server(engine, "--drain-timeout=5", "--log-level=warning")
        self.addresses: dict[str, str] = {door: told[door].removeprefix("http://") for door in ("grpc", "openai")}
        """Door -> host:port."""

    def __enter__(self) -> Self:
        """The server itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        _end(self._process, signal.SIGTERM)

    @property
    def pid(self) -> int:
        """Of the process that holds the gateway and looks after Triton."""
        return self._process.pid

    def gateway_bytes(self) -> int:
        """Resident bytes of that process."""
        return int(psutil.Process(self.pid).memory_info().rss)


class LoadProcess:
    """A load generator in a process of its own: orders in, tallies out."""

    def __init__(self, module: str) -> None:
        """Start `benchmarks.workers.MODULE`."""
        command = [sys.executable, "-P", "-m", f"trierarch.benchmarks.workers.{module}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        """The process itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        _end(self._process, signal.SIGKILL)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def fill(self, order: dict[str, Any]) -> dict[str, Any]:
        """What came of an order. Raise ResourceError where the process ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ResourceError(f"the load generator ended with status {self._process.wait()}")
        tally: dict[str, Any] = json.loads(line)
        return tally


def _end(process: subprocess.Popen[str], how: signal.Signals) -> None:
    process.send_signal(how)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
