"""EngineLoop: the thread whose event loop owns the LLM, and the tasks of the sequences on it.

The engine is dead for good once the library says that it lost its device or its processes, or has been asked and gave
nothing for so long that it must hang: then every stream ends with an error, and nothing is sent any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final

from trierarch.python_backend.errors import DeadlineExceeded, ExecutorFailed, InvalidRequest, ServingError
from trierarch.python_backend.executors.tensorrt_llm.drain import Drain
from trierarch.python_backend.executors.tensorrt_llm.failures import Failure, judge
from trierarch.python_backend.executors.tensorrt_llm.llm import LLM
from trierarch.python_backend.executors.tensorrt_llm.sender import Sender
from trierarch.python_backend.executors.tensorrt_llm.stream import Stream
from trierarch.python_backend.request import FinishReason

logger = logging.getLogger(__name__)

STALL_SECONDS: Final = 300.0
"""Without a step while requests wait for one, or in one call, after which the engine must hang."""
WATCH_SECONDS: Final = 1.0
SHUTDOWN_SECONDS: Final = 30.0
"""That the library gets to stop its processes; some of its ways to stop wait for what is already dead."""


class EngineLoop:
    """Methods that take a stream are for the loop's own thread; `post` leads there."""

    def __init__(
        self,
        open_llm: Callable[[], LLM],
        sender: Sender,
        drains: Callable[[LLM], Iterable[Drain]],
        on_death: Callable[[str], None],
    ) -> None:
        """Open the LLM and serve. `on_death` is told why on the loop's thread, once; it has to end the streams.

        drains: what of the LLM is read beside the answers.

        Raises:
            EngineError, ResourceError: what `open_llm` raises.
        """
        self._open_llm = open_llm
        self._sender = sender
        self._make_drains = drains
        self._drains: tuple[Drain, ...] = ()
        self._on_death = on_death
        self._tasks: dict[Stream, asyncio.Task[None]] = {}
        self._is_dead = False
        self._last_step_ns = 0
        self._last_turn_ns = 0  # of the loop
        self._closed = threading.Event()
        self._opened: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name="trierarch-tensorrt-llm", daemon=True)
        self._thread.start()
        self._loop = self._opened.result()
        threading.Thread(target=self._guard, name="trierarch-tensorrt-llm-guard", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """Whether requests can be served."""
        return not self._is_dead and self._thread.is_alive()

    def post(self, action: Callable[..., object], *arguments: Any) -> None:
        """Call `action` on the loop's thread, soon; nothing happens once it is closed. Any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(action, *arguments)

    def begin(self, stream: Stream) -> None:
        """Serve a sequence; one that is over before it could begin is left alone."""
        task = self._loop.create_task(self._serve(stream))
        self._tasks[stream] = task
        for drain in self._drains:
            drain.wake()
        task.add_done_callback(lambda _: self._tasks.pop(stream))

    def cut(self, stream: Stream, reason: FinishReason, error: ServingError) -> None:
        """End a sequence early; from another thread only where the loop's own hangs."""
        stream.end(reason, error)
        task = self._tasks.get(stream)
        if task is not None:
            self.post(task.cancel)

    def close(self) -> None:
        """Shut the library down; streams have to be over. Idempotent, and from any thread but the loop's own."""
        self.post(lambda: self._stopping.set())
        self._thread.join(0 if self._is_stuck() else 2 * SHUTDOWN_SECONDS)
        self._closed.set()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            if not self._opened.done():
                self._opened.set_exception(error)
                return
            logger.exception("the thread of TensorRT-LLM ended")
            self._die("its thread has ended")

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            llm = self._llm = self._open_llm()
            self._drains = tuple(self._make_drains(llm))
        except Exception as error:  # noqa: BLE001 - whoever opens the executor hears of it
            self._opened.set_exception(error)
            return
        self._opened.set_result(loop)
        reading = [loop.create_task(drain.run(lambda: bool(self._tasks))) for drain in self._drains]
        helpers = [*reading, loop.create_task(self._watch(llm))]
        await self._stopping.wait()
        for task in (*helpers, *self._tasks.values()):
            task.cancel()
        await asyncio.gather(*helpers, *self._tasks.values(), return_exceptions=True)
        _shut_down(llm)

    async def _serve(self, stream: Stream) -> None:
        request = stream.request
        if stream.is_over:
            return
        try:
            async with asyncio.timeout_at(request.deadline) as timeout:
                await self._sender.carry(self._llm, stream, self._note_step)
        except TimeoutError as error:
            if timeout.expired():
                text = f"request {request.request_id!r} did not finish before its deadline"
                stream.end(FinishReason.TIMEOUT, DeadlineExceeded(text))
            else:
                self._fail(stream, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            self._fail(stream, error)
        else:
            stream.end(FinishReason.ERROR, ExecutorFailed("TensorRT-LLM ended the request without a reason"))
        finally:
            self._abandon(stream)

    def _fail(self, stream: Stream, error: Exception) -> None:
        """End a sequence that met an error, and all others where that was the engine's end."""
        request_id = stream.request.request_id
        if isinstance(error, ServingError):
            stream.end(FinishReason.ERROR, error)
            return
        failure = judge(error)
        if failure is Failure.ENGINE:
            logger.error("request %s met the end of the engine", request_id, exc_info=error)
            self._die(str(error) or type(error).__name__)
        elif failure is Failure.INVALID:
            stream.end(FinishReason.ERROR, InvalidRequest("request", request_id, str(error)))
        else:
            logger.warning("request %s failed: %s", request_id, error)
        stream.end(FinishReason.ERROR, ExecutorFailed(f"TensorRT-LLM failed the request: {error}"))

    def _abandon(self, stream: Stream) -> None:
        """Tell the library that nobody wants any more of a sequence that it has not finished."""
        generation = stream.generation
        if generation is None or generation.finished or self._is_dead:
            return
        with contextlib.suppress(Exception):  # It is over here, whatever becomes of it there.
            generation.abort()

    def _note_step(self) -> None:
        self._last_step_ns = time.monotonic_ns()

    async def _watch(self, llm: LLM) -> None:
        """Find out about an engine that died or hangs while nobody hears from it."""
        # What its own server asks, in 1.2 and later.
        check: Callable[[], bool] | None = getattr(llm, "_check_health", None)
        while not self._is_dead:
            now = self._last_turn_ns = time.monotonic_ns()
            sent = (max(stream.sent_ns, self._last_step_ns) for stream in self._tasks if stream.sent_ns)
            if check is not None and not check():
                self._die("its processes have ended")
            elif any(now - since > STALL_SECONDS * 1e9 for since in sent):
                self._die(f"it has made no step for {STALL_SECONDS:g} s")
            await asyncio.sleep(WATCH_SECONDS)

    def _guard(self) -> None:
        """Find out about a call to the library that does not return, which the loop itself cannot."""
        while not self._closed.wait(WATCH_SECONDS):
            if self._is_stuck():
                self._die(f"a call to it has not returned for {STALL_SECONDS:g} s")

    def _is_stuck(self) -> bool:
        is_late = time.monotonic_ns() - self._last_turn_ns > (STALL_SECONDS + WATCH_SECONDS) * 1e9
        return self._thread.is_alive() and self._last_turn_ns > 0 and is_late and not self._stopping.is_set()

    def _die(self, reason: str) -> None:
        if self._is_dead:
            return
        self._is_dead = True
        logger.critical("the engine is dead: %s", reason)
        self._on_death(reason)


def _shut_down(llm: LLM) -> None:
    """Give the library its time to stop, and not more."""
    thread = threading.Thread(target=_quietly, args=(llm.shutdown,), name="trierarch-shutdown", daemon=True)
    thread.start()
    thread.join(SHUTDOWN_SECONDS)
    if thread.is_alive():
        logger.error("TensorRT-LLM did not stop within %g s; it is left behind", SHUTDOWN_SECONDS)


def _quietly(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception:
        logger.exception("TensorRT-LLM did not stop cleanly")
