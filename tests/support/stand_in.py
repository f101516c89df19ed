"""StandIn: a real process that starts, dies and stops as a Triton does, in milliseconds."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from functools import cache
from pathlib import Path
from types import ModuleType

from support import stand_in_grpc_program, stand_in_parent, stand_in_program
from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.gateway.upstream import Endpoints


class StandIn:
    """Implements Sleepable."""

    def __init__(self, is_grpc: bool = False, start_seconds: float = 0.0) -> None:
        """`start_seconds`: that it takes to start, and a little more."""
        self.starts = self.stops = 0
        self.failures = 0
        """Starts that are to fail from now on."""
        self.may_start = threading.Event()
        """Where a start waits, for as long as a test wants one to take."""
        self.may_start.set()
        self._parent = _parent(stand_in_grpc_program if is_grpc else stand_in_program)
        self._start_seconds = start_seconds
        self._process: _Process | None = None

    def start(self) -> Collection[int]:
        if self.failures:
            self.failures -= 1
            raise ResourceError("the stand-in was told to fail")
        self.may_start.wait()
        process = self._process = self._parent.copy()
        if process.has_ended_within(self._start_seconds):
            raise ResourceError("the stand-in died before it was ready")
        self.starts += 1
        return [process.pid]

    def interrupt(self) -> None:
        self.may_start.set()
        self.murder()

    def stop(self) -> None:
        assert self._process is not None
        self._process.send(signal.SIGTERM)
        self._process.has_ended_within(None)
        self.stops += 1
        self.kill()

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send(signal.SIGKILL)
            process.has_ended_within(None)
            process.close()

    @property
    def endpoints(self) -> Endpoints:
        assert self._process is not None
        address = f"127.0.0.1:{self._process.port}"
        return Endpoints(grpc=address, http=address, metrics=address)

    def num_resident_bytes(self) -> int:
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (FileNotFoundError, ProcessLookupError):  # it has just died
            return 0

    @property
    def models(self) -> dict[str, frozenset[str]]:
        return {"m": frozenset({"1"})}

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        process = self._process
        return None if process is None else process.pid

    def murder(self) -> bool:
        """Kill the process without noting it; whether there was one."""
        process = self._process
        if process is not None:
            process.send(signal.SIGKILL)
        return process is not None

    def go_on(self) -> None:
        """Let streams that wait for it go on, now and later."""
        assert self._process is not None
        self._process.send(signal.SIGUSR1)


class _Process:
    """Somebody else's child, by a descriptor that means it and no other even when it has ended."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid, self.port = pid, port
        self._descriptor = os.pidfd_open(pid)
        self._is_open = True
        self._lock = threading.Lock()

    def send(self, number: signal.Signals) -> None:
        """From any thread; nothing to one that has ended."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._is_open:
                signal.pidfd_send_signal(self._descriptor, number)

    def has_ended_within(self, seconds: float | None) -> bool:
        """None: for as long as it lasts."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(None if seconds is None else 1000 * seconds))

    def close(self) -> None:
        with self._lock:
            self._is_open = False
            os.close(self._descriptor)


class _Parent:
    """A `stand_in_parent`, for as long as this process lasts: it ends when its stdin does."""

    def __init__(self, program: ModuleType) -> None:
        options = ["-I", "-S"] if program is stand_in_program else []
        command = [sys.executable, *options, str(stand_in_parent.__file__), str(program.__file__)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock = threading.Lock()

    def copy(self) -> _Process:
        """From any thread."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            pid, port = map(int, self._process.stdout.readline().split())
            return _Process(pid, port)


@cache
def _parent(program: ModuleType) -> _Parent:
    return _Parent(program)
