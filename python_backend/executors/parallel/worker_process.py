"""WorkerProcess: the other end of `worker.py`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

from trierarch.python_backend.guides.process import python

if TYPE_CHECKING:
    from trierarch.python_backend.executors.parallel.messages import Command

_WORKER: Final = "trierarch.python_backend.executors.parallel.worker"
FAILED: Final = "exit status 1"
"""The end of a worker that said why."""


class WorkerProcess:
    """Runs from the start; ends when it is killed, or with the process that started it."""

    def __init__(self, index: int) -> None:
        """Start rank `index`; it takes seconds to be up. Raise OSError where there is no Python to run it."""
        self.index = index
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [python(), "-m", _WORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C that lets requests finish must not end it
            )
        self.connection: Connection[Any, Any] = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Say something. Raise OSError where it is gone."""
        self.connection.send(command)

    def end(self) -> str | None:
        """How it ended, for people; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def kill(self) -> None:
        """End it, also where it is stopped or waits. Idempotent; `reap` comes after."""
        self._process.kill()

    def reap(self) -> None:
        """Wait for its end and let go of it. Idempotent."""
        self._process.wait()
        self.connection.close()
