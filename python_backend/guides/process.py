"""GuideProcess: the other end of `worker.py`."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from trierarch.python_backend.guides.protocol import Asks, MaskReply, Vocabulary
from trierarch.python_backend.request import Guide

_WORKER: Final = "trierarch.python_backend.guides.worker"


class GuideProcess:
    """Runs from the start; ends when it is closed, or with the process that started it.

    One thread may call `compile`, another the rest. EOFError or OSError from any of them: it is gone.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Start it; it takes a second to be up. Raise OSError where there is no Python to run it."""
        pairs = [socket.socketpair() for _ in range(2)]
        theirs = [pair[1] for pair in pairs]
        command = [python(), "-m", _WORKER, *(str(end.fileno()) for end in theirs), pickle.dumps(vocabulary).hex()]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            pass_fds=[end.fileno() for end in theirs],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C that lets requests finish must not end it
        )
        for end in theirs:
            end.close()
        self._compiling, self._masking = (Connection(pair[0].detach()) for pair in pairs)
        self._is_up = False

    def is_up(self, timeout: float = 0.0) -> bool:
        """Whether it takes asks, after at most `timeout` seconds."""
        if not self._is_up and self._masking.poll(timeout):
            self._masking.recv()
            self._is_up = True
        return self._is_up

    def compile(self, guide: Guide, timeout: float) -> str | None:
        """What is wrong with a guide; None for nothing. Raise TimeoutError after `timeout` seconds."""
        while self._compiling.poll():
            self._compiling.recv()  # of a guide that took longer than somebody waited
        self._compiling.send(guide)
        if not self._compiling.poll(timeout):
            raise TimeoutError
        objection: str | None = self._compiling.recv()
        return objection

    def ask(self, asks: Asks) -> None:
        """Ask without waiting. Each ask will be replied to, in the order in which they came."""
        self._masking.send(asks)

    def replies(self, timeout: float) -> list[MaskReply]:
        """Those that came since the last call; waits at most `timeout` seconds for the first."""
        replies: list[MaskReply] = []
        while self._masking.poll(0.0 if replies else timeout):
            replies += self._masking.recv()
        return replies

    def close(self) -> None:
        """Kill it. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._compiling.close()
        self._masking.close()


def python() -> str:
    """The interpreter that runs this process's Python, also where that is embedded, as in Triton's stub.

    Raises:
        FileNotFoundError: there is none.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, f"{sys.prefix}/bin/{name}", f"{sys.base_prefix}/bin/{name}"):
        if path and Path(path).name.startswith("python") and Path(path).is_file():
            return path
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"no {name} to run guides in")
    return found
