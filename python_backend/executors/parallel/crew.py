"""Crew: the ranks other than 0, as rank 0 sees them: told what to do all at once, and lost all at once.

A rank that ends, fails or hangs leaves the others waiting in the middle of a step, so that none of them can be used again.
Whichever it was, all are killed, which also ends whatever rank 0 itself waits for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Final, TypeVar

from trierarch.builder.errors import ResourceError, TrierarchError
from trierarch.python_backend.executors.offload.carrier import News
from trierarch.python_backend.executors.parallel.messages import Arrange, Arranged, Command, Failed, Moved, Reply
from trierarch.python_backend.executors.parallel.worker_process import FAILED, WorkerProcess
from trierarch.python_backend.executors.runner import RunnerLost

logger = logging.getLogger(__name__)

WATCH_SECONDS: Final = 0.5
"""How often it is looked whether something hangs."""
_HEARSAY_SECONDS: Final = 0.2
"""For a rank's end to be known, where another one has met it first."""
_OPEN_SECONDS: Final = 3600.0
"""For all weights to be read, from a slow disk too."""

_STEP: Final = "a step"

R = TypeVar("R", bound=Reply)


class Crew:
    """Ranks 1 and on. Any thread; commands for steps come from one."""

    def __init__(self, num_ranks: int, stall_seconds: float) -> None:
        """Start them. stall_seconds: after which what is waited for hangs.

        Raises:
            ResourceError: there is no Python to run them.
        """
        self._num_ranks = num_ranks
        self._stall_seconds = stall_seconds
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._replies: dict[tuple[int, object], Reply] = {}
        self._loss: str | None = None
        self._cause: Exception | None = None
        self._listeners: list[Callable[[str], None]] = []
        self._on_copy: Callable[[int, News], None] = lambda *_: None
        self._awaited: dict[str, float] = {}  # what -> since when
        self._is_closing = False
        self._workers: list[WorkerProcess] = []
        try:
            for index in range(1, num_ranks):
                self._workers.append(WorkerProcess(index))
        except OSError as error:
            self._end_all()
            raise ResourceError(f"no process could be started for rank {index} of {num_ranks}: {error}") from error
        self._thread = threading.Thread(target=self._watch, name="trierarch-ranks", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of ranks 1 and on."""
        return tuple(worker.pid for worker in self._workers)

    @property
    def num_ranks(self) -> int:
        """Rank 0 among them."""
        return self._num_ranks

    def listen_to_copies(self, on_copy: Callable[[int, News], None]) -> None:
        """Have `on_copy` told of which rank it is and how one of its copies ended, on another thread."""
        self._on_copy = on_copy

    def listen(self, on_loss: Callable[[str], None]) -> None:
        """Have `on_loss` told why once they are lost, on another thread, or at once where they are."""
        with self._changed:
            self._listeners.append(on_loss)
            loss = self._loss
        if loss is not None:
            on_loss(loss)

    def tell(self, command: Command) -> None:
        """Say the same to all. Raise RunnerLost where they are lost."""
        self.tell_each([command] * len(self._workers))

    def tell_each(self, commands: Sequence[Command]) -> None:
        """Say something to each. Raise RunnerLost where they are lost."""
        if self._loss is not None:
            raise RunnerLost(self._loss)
        try:
            with self._sending:
                for worker, command in zip(self._workers, commands, strict=True):
                    worker.send(command)
        except OSError as error:
            raise self.lost_by(error) from error

    def answers(self, kind: type[R], timeout: float = _OPEN_SECONDS) -> list[R]:
        """What all reply to what was told while the engine is opened.

        Raises:
            TrierarchError: what one of them met.
            ResourceError: one of them ended.
        """
        return [self._answer(worker, kind, kind, timeout) for worker in self._workers]

    def arrange(self, commands: Sequence[Arrange]) -> None:
        """Have each hold its part of an adapter.

        Raises:
            RunnerLost, ResourceError: they are lost.
            RuntimeError: one could not, for want of room most likely.
        """
        self.tell_each(commands)
        number = commands[0].number
        errors = [self._answer(worker, Arranged, number, _OPEN_SECONDS).error for worker in self._workers]
        for error in errors:
            if error is not None:
                raise error

    def wait_for(self, what: str) -> None:
        """From now on. The ranks hang if it takes too long, and are lost."""
        with self._changed:
            self._awaited[what] = time.monotonic()

    def has_come(self, what: str) -> None:
        """It is waited for no longer, if it was."""
        with self._changed:
            self._awaited.pop(what, None)

    @contextmanager
    def step(self) -> Iterator[None]:
        """From a step's beginning until its output is known. Raise RunnerLost where a rank was lost by then.

        A GPU computes behind its caller's back, and what was waited for in vain looks like a result.
        """
        self.wait_for(_STEP)
        try:
            yield
        finally:
            self.has_come(_STEP)
        if self._loss is not None:
            raise RunnerLost(self._loss)

    @contextmanager
    def together(self) -> Iterator[None]:
        """While rank 0 does what the others were told too. Raise RunnerLost where it fails: they are out of step."""
        try:
            yield
        except Exception as error:
            raise self.lost_by(error) from error

    def lost_by(self, error: Exception) -> RunnerLost:
        """What `error`, met by rank 0, comes of: another rank's end, or itself. They are lost either way."""
        with self._changed:
            self._changed.wait_for(lambda: self._loss is not None, 2 * _HEARSAY_SECONDS + WATCH_SECONDS)
        self._lose(f"rank 0 of {self._num_ranks} failed: {type(error).__name__}: {error}".splitlines()[0])
        assert self._loss is not None
        return RunnerLost(self._loss)

    def close(self) -> None:
        """End them and wait for their end. Idempotent."""
        self._is_closing = True
        for worker in self._workers:
            worker.kill()
        self._thread.join()
        self._end_all()

    def _end_all(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.reap()
        self._workers.clear()

    def _answer(self, worker: WorkerProcess, kind: type[R], key: object, timeout: float) -> R:
        """Taken away: each comes once. `key` tells replies of one kind apart."""
        place = (worker.index, key)
        with self._changed:
            self._changed.wait_for(lambda: self._loss is not None or place in self._replies, timeout)
            reply = self._replies.pop(place, None)
        if isinstance(reply, kind):
            return reply
        if isinstance(self._cause, TrierarchError):
            raise type(self._cause)(self._loss) from self._cause
        raise ResourceError(
            self._loss or f"rank {worker.index} of {self._num_ranks} has not answered for {timeout:g} s"
        )

    def _watch(self) -> None:
        """Hear replies, ends and silence."""
        while not self._is_closing and self._loss is None:
            ready = wait([worker.connection for worker in self._workers], WATCH_SECONDS)
            for worker in self._workers:
                if worker.connection in ready:
                    self._hear(worker)
            with self._changed:
                latest = time.monotonic() - self._stall_seconds
                late = [what for what, since in self._awaited.items() if since < latest]
            if late:
                self._lose(f"{late[0]} over {self._num_ranks} ranks has not ended for {self._stall_seconds:g} s")

    def _hear(self, worker: WorkerProcess) -> None:
        try:
            reply = worker.connection.recv()
        except Exception:  # noqa: BLE001 - whatever comes of it, it is no reply
            self._lose(self._ended(worker))
            return
        if isinstance(reply, Moved):
            self._on_copy(worker.index, reply.news)
            return
        if isinstance(reply, Failed):
            # A rank that misses another one fails too: the one that is gone without a word is to blame.
            time.sleep(_HEARSAY_SECONDS)
            silent = [other for other in self._workers if other.end() not in (None, FAILED)]
            if silent:
                self._lose(self._ended(silent[0]))
            else:
                self._lose(f"rank {worker.index} of {self._num_ranks}: {reply.error}", reply.error)
            return
        key = reply.number if isinstance(reply, Arranged) else type(reply)
        with self._changed:
            self._replies[worker.index, key] = reply
            self._changed.notify_all()

    def _ended(self, worker: WorkerProcess) -> str:
        time.sleep(0 if worker.end() else _HEARSAY_SECONDS)
        return (
            f"rank {worker.index} of {self._num_ranks} (process {worker.pid}) has ended: {worker.end() or 'silently'}"
        )

    def _lose(self, loss: str, cause: Exception | None = None) -> None:
        """The first time, end all and tell everybody."""
        with self._changed:
            if self._loss is not None:
                return
            self._loss, self._cause = loss, cause
            listeners = list(self._listeners)
            self._changed.notify_all()
        if self._is_closing:
            return
        logger.critical("%s; the others are ended too", loss)
        for worker in self._workers:
            with suppress(OSError):
                worker.kill()
        for listener in listeners:
            try:
                listener(loss)
            except Exception:
                logger.exception("a loss could not be told")
