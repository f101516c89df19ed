"""WorkerSubject: a subject in a process of its own, spoken to by `workers.protocol`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from trierarch.benchmarks.paths import IMPORT_PATH, OUT
from trierarch.benchmarks.process_tree import peak_rss
from trierarch.benchmarks.subjects.subject import SubjectFailed, Timing
from trierarch.benchmarks.workers.protocol import Ready, Steering, TokenIds

START_SECONDS: Final = 900.0
"""Some rivals compile for minutes when they first start."""
CALL_SECONDS: Final = 300.0
CLOSE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a worker is started."""

    name: str
    python: Path
    module: str
    """Full name of the worker's module."""
    model: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """On top of ours."""


class WorkerSubject:
    """Owns the worker's process group: whatever ends us or it, nothing of it stays."""

    def __init__(self, launch: Launch) -> None:
        """Nothing runs before `start`."""
        self._launch = launch
        self._process: subprocess.Popen[str] | None = None
        self._ready: Ready | None = None
        self._spawned = 0.0

    @property
    def name(self) -> str:
        """See Subject.name."""
        return self._launch.name

    @property
    def pids(self) -> list[int]:
        """See Subject.pids."""
        return [] if self._process is None else [self._process.pid]

    def start(self) -> Ready:
        """See Subject.start."""
        launch = self._launch
        logs = OUT / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(IMPORT_PATH), **launch.environment}
        command = [str(launch.python), "-P", "-m", launch.module, str(launch.model)]
        self._spawned = time.monotonic()
        with (logs / f"{launch.name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=logs,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._ready = Ready(**self._receive(START_SECONDS))
        return self._ready

    @property
    def ready(self) -> Ready | None:
        """What the worker said when it was loaded; None while it does not run."""
        return None if self._process is None else self._ready

    def generate(self, prompts: list[TokenIds], num_output_tokens: int, steering: Steering | None = None) -> Timing:
        """See Subject.generate. `steering` is heard by a worker that can be steered."""
        message = {"prompts": prompts, "num_output_tokens": num_output_tokens}
        self._send(message | ({} if steering is None else {"steering": asdict(steering)}))
        reply = self._receive(CALL_SECONDS)
        timing = Timing(reply["seconds"], tuple(reply["token_ids"]), reply.get("counters", {}))
        lengths = [len(token_ids) for token_ids in timing.token_ids]
        if lengths != [num_output_tokens] * len(prompts):
            raise SubjectFailed(f"{self.name} gave {lengths} tokens for {len(prompts)} prompts x {num_output_tokens}")
        return timing

    def seconds_since_start(self) -> float:
        """See Subject.seconds_since_start."""
        started = self._ready.started if self._ready is not None else None
        return time.monotonic() - (self._spawned if started is None else started)

    def peak_rss(self) -> int:
        """See Subject.peak_rss."""
        if self._ready is None:
            raise SubjectFailed(f"{self.name} is not running")
        return peak_rss(self._ready.pid)

    def close(self) -> None:
        """See Subject.close."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()  # the worker closes its engine and ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(CLOSE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started and did not end, or all of it
        process.wait()
        process.stdout.close()

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is None:
            raise SubjectFailed(f"{self.name} is not running")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise SubjectFailed(f"{self.name} ended ({error}); see {self._log}") from error

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        timer = threading.Timer(seconds, self._process.kill)  # ends the wait with end of file
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise SubjectFailed(f"{self.name} ended or did not answer within {seconds:.0f} s; see {self._log}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise SubjectFailed(f"{self.name}: {reply['error']}; see {self._log}")
        return reply

    @property
    def _log(self) -> str:
        return f"{OUT.name}/logs/{self.name}.log"
