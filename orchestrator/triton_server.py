"""TritonServer: one tritonserver process, from occupied port to last byte drained."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

import psutil

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator import guardian
from trierarch.orchestrator.fetch import FetchFailed, fetch
from trierarch.orchestrator.run_directory import RunDirectory
from trierarch.orchestrator.server_config import Endpoints, ServerConfig
from trierarch.orchestrator.server_log import failure, load_failure, tail

POLL_SECONDS: Final = 0.1
START_ATTEMPTS: Final = 3
CRASHES: Final = frozenset({128 + signal.SIGABRT, 128 + signal.SIGSEGV})
"""Exit statuses of a server that fell over a fault of its own."""
KILL_GRACE_SECONDS: Final = 5.0
"""Added to the drain timeout before a server that does not end is killed: Triton counts whole seconds."""
STUB_NAME: Final = "triton_python_b"
"""Kernel's name of a stub process: the first 15 characters."""
STUB_GRACE_SECONDS: Final = 2.0
"""For which a dead child of a server that starts may wait to be buried; one that the server itself ended waits for less."""


class ServerCrashed(ResourceError):
    """Triton crashed before it was ready."""


class PortLost(ResourceError):
    """Somebody else listens on a port that was free when the server was started: what he says is not ours."""


class TritonServer:
    """Owns the process: whatever ends us or it, no server, stub or shared memory is left behind."""

    def __init__(self, binary: Path, repository: Path, run: RunDirectory, config: ServerConfig) -> None:
        """Prepare to run `binary` over a model repository; nothing starts yet."""
        self._binary, self._repository, self._run = binary, repository, run
        self.config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._is_interrupted = False
        self._log_start = 0
        """Bytes that earlier starts wrote to the log."""

    def __enter__(self) -> Self:
        """The server itself; nothing starts yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what has not been stopped."""
        self.kill()

    def start(self, on_wait: Callable[[float], None] = lambda seconds: None) -> None:
        """Start the server and wait until every model is ready; `on_wait` hears the seconds waited so far.

        Triton's Python backend now and then aborts while its stubs start (server issue 8882 is one such race): a
        server that crashes, or one of whose stubs does, is started again. So is one that lost a port, on others where any
        would do.

        Raises:
            ResourceError: a port is occupied, or was taken meanwhile (PortLost); a model did not load or was not ready in time.
        """
        asked = self.config
        for _ in range(START_ATTEMPTS - 1):
            self._start_process()
            with contextlib.suppress(ServerCrashed, PortLost):
                return self._wait_ready(on_wait)
            self.kill()
            self.config = asked
        self._start_process()
        self._wait_ready(on_wait)

    def _start_process(self) -> None:
        """Start the process; ports given as 0 are chosen now and kept over restarts.

        Raises:
            ResourceError: a port is occupied, or `interrupt` was called.
        """
        if self._is_interrupted:
            raise ResourceError("the server is not started: it was told to stay down")
        self.config = replace(self.config, ports=self.config.ports.reserve(self.config.host))
        command = [sys.executable, "-I", "-S", guardian.__file__, str(self._binary), *self._arguments()]
        with self._run.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                cwd=self._run.path,
                env=self._run.environment(),
                stdin=subprocess.PIPE,  # breaks when we end, however we end; the guardian then kills the server
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C reaches us alone; we decide how the server ends
            )

    def _arguments(self) -> list[str]:
        return [
            f"--model-repository={self._repository.resolve()}",
            f"--backend-directory={self._run.backends}",
            f"--backend-config=python,shm-region-prefix-name={self._run.shared_memory_prefix}",
            *self.config.arguments(),
        ]

    @property
    def endpoints(self) -> Endpoints:
        """Where clients on this machine connect."""
        return self.config.endpoints

    @property
    def log(self) -> Path:
        """The server's log."""
        return self._run.log

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def stub_pids(self) -> frozenset[int]:
        """Live stub processes, one for each instance of a Python model."""
        return frozenset(pid for pid, status in self._children(STUB_NAME) if status != psutil.STATUS_ZOMBIE)

    def _dead_children(self) -> frozenset[int]:
        """Processes that the server started and has not taken note of the end of."""
        return frozenset(pid for pid, status in self._children() if status == psutil.STATUS_ZOMBIE)

    def _children(self, name: str = "") -> Iterator[tuple[int, str]]:
        """Processes, and their status, that the server itself started, with names that begin with `name`.

        What its stubs start has the name of a stub, too, until it has become what it is to be.
        """
        processes = self.processes()
        for process in processes[2:]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended while it was looked at
                if process.ppid() == processes[1].pid and process.name().startswith(name):
                    yield process.pid, process.status()

    def vital_pids(self) -> frozenset[int]:
        """Processes without any of which it does not serve: the guardian, the server, its stubs."""
        processes = self.processes()
        if len(processes) < 2:
            raise ResourceError("the server ended when it was ready")
        return frozenset({process.pid for process in processes[:2]} | self.stub_pids())

    def processes(self) -> list[psutil.Process]:
        """The guardian, the server and whatever that has started, stubs among them; none where it does not run."""
        if self._process is None:
            return []
        try:
            guardian_process = psutil.Process(self._process.pid)
            return [guardian_process, *guardian_process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _wait_ready(self, on_wait: Callable[[float], None]) -> None:
        """Wait until every model is ready.

        Raises:
            PortLost: it was not our server that said it was ready.
            ServerCrashed: the server or a stub did. Triton itself would wait for such a stub for seconds, or for ever.
            ResourceError: the server ended, or a model was not ready in time; the message has what its log says.
        """
        started = time.monotonic()
        url = f"{self.endpoints.http}/v2/health/ready"
        unburied: dict[int, float] = {}
        while (waited := time.monotonic() - started) < self.config.ready_timeout:
            if not self.is_running:
                self._raise_ended()
            unburied = {pid: unburied.get(pid, waited) for pid in self._dead_children()}
            if any(waited - since > STUB_GRACE_SECONDS for since in unburied.values()):
                self._raise_stub_lost()
            with contextlib.suppress(FetchFailed):  # not listening yet, or not ready
                fetch(url, timeout=5.0)
                if self._listens():
                    return
            on_wait(waited)
            time.sleep(POLL_SECONDS)
        raise ResourceError(
            f"the models were not ready after {self.config.ready_timeout:g} s; the log's last lines:\n{tail(self.log)}"
        )

    def _listens(self) -> bool:
        """Whether our processes listen where clients are sent: between choosing a port and listening on it a server takes
        seconds, in which the port is anybody's.

        Raises:
            PortLost: it was somebody else who answered.
        """
        listening = set[int]()
        for process in self.processes():
            try:
                connections = process.net_connections("tcp")
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:  # where we may not look, nobody can tell
                return True
            listening |= {
                connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN
            }
        ports = self.config.ports
        if ports.http not in listening:
            raise PortLost(
                f"port {ports.http} was free, and then another process took it: choose another with --http-port"
            )
        return {ports.grpc, ports.metrics} <= listening  # Triton comes to the latter last

    def _raise_ended(self) -> NoReturn:
        assert self._process is not None
        kind = ServerCrashed if self._process.wait() in CRASHES else ResourceError
        raise kind(failure(self.log, self._log_start))

    def _raise_stub_lost(self) -> NoReturn:
        """A stub ended, and the server has not noticed, or has other models to wait for before it tells."""
        reason = load_failure(self.log, self._log_start)
        if reason is not None:
            raise ResourceError(reason)
        raise ServerCrashed(f"a stub process died while its model was loading; the whole log is at {self.log}")

    def stop(self) -> bool:
        """Refuse new requests, let open ones finish within the drain timeout, end. Whether it ended by itself."""
        if self._process is None:
            return True
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(self.config.drain_timeout + KILL_GRACE_SECONDS)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()

    def interrupt(self) -> None:
        """Make a start that another thread is in fail soon, and every later one. From any thread."""
        self._is_interrupted = True
        process = self._process
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()

    def kill(self) -> None:
        """End the server and its stubs at once; open streams break. Idempotent."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None
            self._run.sweep_shared_memory()
