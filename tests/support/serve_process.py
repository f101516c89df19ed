"""`trierarch serve` as people run it: a process of its own, talked to by signals."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from support.eventually import eventually
from trierarch.orchestrator.client import TritonClient
from trierarch.orchestrator.run_directory import sweep

TRIERARCH: Final = str(Path(sys.executable).parent / "trierarch")
PATIENCE_SECONDS: Final = 120.0
"""For an end in good order, which lets open streams finish."""
FREE_PORTS: Final = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--gateway-port", "0")


class ServeProcess:
    """One `trierarch serve`."""

    def __init__(self, path: Path, *options: str, command: Sequence[str] = (TRIERARCH,)) -> None:
        """Start it on free ports; `command` is how `trierarch` is called."""
        command = [*command, "serve", str(path), *FREE_PORTS, "--json", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._said: list[str] = []
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def wait_ready(self) -> None:
        """Wait until it tells its endpoints."""
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready, f"serve ended: {self.said}"
        self.endpoints: dict[str, str] = {name: str(value) for name, value in json.loads(ready).items()}
        self.client = TritonClient(self.endpoints["grpc"])

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said.append(line)

    @property
    def said(self) -> str:
        """What it has written to standard error so far."""
        return "".join(self._said)

    def family(self) -> list[psutil.Process]:
        """Every process below it: the guardian, tritonserver, its stubs."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stubs(self) -> list[psutil.Process]:
        """The live stubs."""
        return self.named("triton_python_b")

    def named(self, prefix: str) -> list[psutil.Process]:
        """The live processes below it whose names begin so."""
        found = []
        for process in self.family():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                found += [process] * (process.name().startswith(prefix) and lives(process))
        return found

    def wait(self) -> int:
        """Its exit status, once it ends."""
        status = self.process.wait(PATIENCE_SECONDS)
        self._listener.join()
        return status

    def close(self) -> None:
        """End it, if nothing has."""
        self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


@contextmanager
def serve(path: Path, *options: str, command: Sequence[str] = (TRIERARCH,)) -> Iterator[ServeProcess]:
    """A `trierarch serve` that is ready, and nothing of it afterwards; `command` is how `trierarch` is called."""
    process = ServeProcess(path, *options, command=command)
    try:
        process.wait_ready()
        yield process
    finally:
        family = process.family() if process.process.poll() is None else []
        process.close()
        eventually(lambda: not any(map(lives, family)), "an end to the server's processes")
        sweep()


def lives(process: psutil.Process) -> bool:
    """Whether it runs, and is not only waited for."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
