"""GuideCompiler: finds out on a thread of its own which guides can be served.

A guide is first compiled where that may take as long as it likes and as much memory: in a process that nobody else needs,
which is killed when it takes too long. What comes through is compiled again where masks are made.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Protocol

from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, ServingError
from trierarch.python_backend.guides.process import GuideProcess
from trierarch.python_backend.guides.protocol import Vocabulary
from trierarch.python_backend.request import Guide

logger = logging.getLogger(__name__)

MOST_SECONDS: Final = 10.0
"""That a guide may take to compile."""
_START_SECONDS: Final = 60.0
"""That a process may take to be there."""
_MOST_KNOWN: Final = 256
"""Guides whose verdicts are remembered."""


class GuideUser(Protocol):
    """Where guides are needed that can be served. Both methods are called on the compiler's thread and raise nothing."""

    def start(self) -> None:
        """A first guide is wanted."""
        ...

    def prepare(self, guide: Guide, timeout: float) -> None:
        """Compile a guide, in at most `timeout` seconds if that can be."""
        ...


class GuideCompiler:
    """Verdicts on guides. Every method may be called from any thread, and none of them waits."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        user: GuideUser,
        on_change: Callable[[], None],
        seconds: float = MOST_SECONDS,
    ) -> None:
        """Start nothing before a guide is wanted. `on_change` is called on the compiler's thread, after each verdict."""
        self._vocabulary = vocabulary
        self._user = user
        self._on_change = on_change
        self._seconds = seconds
        self._changed = threading.Condition()
        self._wanted: deque[Guide] = deque()
        self._known: OrderedDict[Guide, ServingError | None] = OrderedDict()  # None is fit; the longest unused first
        self._is_closing = False
        self._thread: threading.Thread | None = None
        self._process: GuideProcess | None = None
        self.num_refusals = 0

    def want(self, guide: Guide) -> None:
        """Find out about a guide, unless that is known or under way."""
        with self._changed:
            if guide in self._known or guide in self._wanted or self._is_closing:
                return
            self._wanted.append(guide)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trierarch-guides", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def is_ready(self, guide: Guide) -> bool:
        """Whether a guide is compiled; one that was forgotten is wanted again."""
        with self._changed:
            if guide in self._known:
                self._known.move_to_end(guide)
                return self._known[guide] is None
        self.want(guide)
        return False

    def error(self, guide: Guide) -> ServingError | None:
        """Why a guide cannot be served; None if it can as far as is known."""
        return self._known.get(guide)

    def close(self) -> None:
        """Stop, whatever is under way. Idempotent."""
        with self._changed:
            self._is_closing = True
            process, self._process = self._process, None
            self._changed.notify_all()
        if process is not None:
            process.close()
        if self._thread is not None:
            self._thread.join()

    def refuse(self, guide: Guide, error: ServingError) -> None:
        """Serve a guide no more: it was fit to compile, and turned out to take too long."""
        with self._changed:
            self._note(guide, error)

    def _run(self) -> None:
        self._user.start()
        while (guide := self._next()) is not None:
            error: ServingError | None
            try:
                error = self._try(guide)
            except Exception as failure:
                logger.exception("a guide could not be compiled")
                error = ExecutorFailed(
                    f"guides cannot be compiled here ({type(failure).__name__}); see the server's log"
                )
            if error is None:
                self._user.prepare(guide, self._seconds)
            with self._changed:
                if self._is_closing:
                    return
                self._wanted.popleft()
                self._note(guide, error)
            self._on_change()

    def _next(self) -> Guide | None:
        """The next guide that is wanted, which stays so until its verdict is known; None once closing."""
        with self._changed:
            while not (self._wanted or self._is_closing):
                self._changed.wait()
            return None if self._is_closing else self._wanted[0]

    def _note(self, guide: Guide, error: ServingError | None) -> None:
        self._known[guide] = error
        self.num_refusals += error is not None
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def _try(self, guide: Guide) -> ServingError | None:
        """Compile a guide where nothing depends on it: what is wrong with it."""
        process = self._open()
        try:
            objection = process.compile(guide, self._seconds)
        except TimeoutError:
            objection = f"it takes longer than {self._seconds:g} s to compile; make it simpler"
            self._lose(process)
        except (EOFError, OSError):
            objection = "it takes too much memory to compile; make it simpler"
            self._lose(process)
        return None if objection is None else InvalidRequest("guide", guide.text, objection)

    def _open(self) -> GuideProcess:
        with self._changed:
            if self._process is not None:
                return self._process
        process = GuideProcess(self._vocabulary)
        with self._changed:
            if not self._is_closing:
                self._process = process
        if not process.is_up(_START_SECONDS):
            self._lose(process)
            raise TimeoutError("the process for guides does not start")
        return process

    def _lose(self, process: GuideProcess) -> None:
        with self._changed:
            self._process = None
        process.close()
