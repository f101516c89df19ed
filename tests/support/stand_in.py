"""StandIn: a real process that starts, dies and stops as a Triton does, in milliseconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from support import stand_in_grpc_program, stand_in_program
from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.gateway.upstream import Endpoints


class StandIn:
    """Implements Sleepable."""

    def __init__(self, start_seconds: float = 0.0, is_grpc: bool = False) -> None:
        """`start_seconds`: that it takes to start, and more; not of the one that speaks gRPC, which takes its time."""
        self.starts = self.stops = 0
        self.failures = 0
        """Starts that are to fail from now on."""
        self._command = [sys.executable, "-I", "-S", stand_in_program.__file__, str(start_seconds)]
        if is_grpc:
            self._command = [sys.executable, stand_in_grpc_program.__file__]
        self._process: subprocess.Popen[str] | None = None
        self._port = 0

    def start(self) -> Collection[int]:
        if self.failures:
            self.failures -= 1
            raise ResourceError("the stand-in was told to fail")
        process = self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise ResourceError("the stand-in died before it was ready")
        self._port = int(line)
        self.starts += 1
        return [process.pid]

    def interrupt(self) -> None:
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        process.wait()
        self.stops += 1
        self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    @property
    def endpoints(self) -> Endpoints:
        address = f"127.0.0.1:{self._port}"
        return Endpoints(grpc=address, http=address, metrics=address)

    def num_resident_bytes(self) -> int:
        process = self._process
        assert process is not None
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def models(self) -> dict[str, frozenset[str]]:
        return {"m": frozenset({"1"})}

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        process = self._process
        return None if process is None else process.pid
