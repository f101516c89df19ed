"""StepExecutor: the loop. The step is the sentence: plan = schedule(), output = run(plan), update(plan, output).

Between the first and the second the speculator may put drafts behind what has to be computed. Where a device computes beside the
host, running is launching and collecting, and between these two the next step is planned and launched, if it can be planned
ahead (scheduling/ahead.py): then the device does not wait for the host.

One thread owns the runner and calls every sink. Other threads only queue: `submit` adds to the scheduler's waiting
queue and `abort` leaves a note, both under the lock; neither touches a sequence that a step is computing. Blocks are
therefore given back before the next plan is made, and by the runner's order of steps never under one that writes to them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.loader import AdapterLoader
from trierarch.python_backend.adapters.registry import AdapterRegistry
from trierarch.python_backend.adapters.stats import AdapterInfo
from trierarch.python_backend.errors import Cancelled, ExecutorFailed, ShuttingDown, UnknownAdapter
from trierarch.python_backend.executors.computed import Computed, Flight, compute, land
from trierarch.python_backend.executors.executor import ExecutorStats, Sink
from trierarch.python_backend.executors.logits_budget import LogitsBudget
from trierarch.python_backend.executors.machine import resident_bytes
from trierarch.python_backend.executors.offload.mover import Mover
from trierarch.python_backend.executors.runner import LaunchingRunner, Runner, RunnerLost
from trierarch.python_backend.executors.subscribers import Subscribers
from trierarch.python_backend.guides.guides import Guides
from trierarch.python_backend.guides.masking import GuidedStep
from trierarch.python_backend.request import Request, check_token_ids
from trierarch.python_backend.scheduling.admission import NO_ADAPTERS
from trierarch.python_backend.scheduling.ahead import may_launch
from trierarch.python_backend.scheduling.plan import Plan
from trierarch.python_backend.scheduling.scheduler import Scheduler
from trierarch.python_backend.speculation.speculator import Speculator

logger = logging.getLogger(__name__)


class StepExecutor:
    """Drives one Scheduler and one Runner. Implements the Executor protocol."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        vocab_size: int,
        speculator: Speculator | None = None,
        registry: AdapterRegistry | None = None,
        guides: Guides | None = None,
        at_end: Callable[[], object] = lambda: None,
        mover: Mover | None = None,
        launcher: LaunchingRunner | None = None,
    ) -> None:
        """`speculator` None verifies the requests' own drafts and no others. `registry`, `guides`: the scheduler's.

        at_end: called once, when the last step has run and before the runner closes. mover: of the scheduler's cache, where
        that has tiers behind it. launcher: the runner, where steps are to be launched; None runs one after another.
        """
        assert launcher is None or launcher is runner
        self._launcher = launcher
        self._mover = mover
        if mover is not None:
            mover.listen(self._wake)
        self._at_end = at_end
        self._registry = registry
        self._scheduler = scheduler
        self._speculator = speculator or Speculator(None, vocab_size)
        self._vocab_size = vocab_size
        self._runner = runner
        self._logits_budget = LogitsBudget(vocab_size)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sinks = Subscribers()
        self._aborted: list[tuple[str, int | None]] = []
        self._is_draining = False
        self._is_closing = False
        self._loss: str | None = None
        self._taken_in = time.perf_counter()
        """When the last step was, or there was nothing to do until then."""
        self._thread = threading.Thread(target=self._run, name="trierarch-executor", daemon=True)
        self._guides = guides
        if guides is not None:
            guides.listen(self._wake)
        self._loader = None if registry is None else AdapterLoader(registry.pool.cache, self._wake)
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """See Executor.is_healthy."""
        return self._loss is None and self._thread.is_alive()

    def lose(self, loss: str) -> None:
        """End everything with ExecutorFailed, and serve nobody any more: the runner is lost. Any thread."""
        with self._changed:
            self._loss = self._loss or loss
            self._changed.notify_all()

    def submit(self, request: Request, sink: Sink) -> None:
        """See Executor.submit."""
        check_token_ids("prompt_token_ids", request.prompt_token_ids, self._vocab_size)
        check_token_ids("answer_so_far", request.answer_so_far, self._vocab_size)
        check_token_ids("draft_token_ids", request.speculation.draft_token_ids, self._vocab_size)
        request.sampling.check_vocabulary(self._vocab_size)
        with self._changed:
            if self._loss is not None:
                raise ExecutorFailed(f"the engine is lost, and its server has to start it anew: {self._loss}")
            if self._is_draining or self._is_closing:
                raise ShuttingDown("the server is shutting down and takes no new requests; retry elsewhere")
            self._logits_budget.check(request)
            self._scheduler.add(request)
            self._logits_budget.hold(request)
            self._sinks.add(request, sink)
            self._changed.notify_all()

    def find_adapter(self, name: str) -> Adapter:
        """See Executor.find_adapter."""
        if self._registry is None:
            raise UnknownAdapter("adapter", name, NO_ADAPTERS)
        return self._registry.find(name)

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """See Executor.adapters."""
        if self._registry is None:
            return ()
        with self._lock:
            requests = self._scheduler.requests()
        return self._registry.infos(requests)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """See Executor.abort."""
        with self._changed:
            if request_id in self._sinks:
                self._aborted.append((request_id, index))
                self._changed.notify_all()

    def stats(self) -> ExecutorStats:
        """See Executor.stats. The lock is never held while a step runs."""
        adapters = None
        with self._lock:
            counts = self._scheduler.stats()
            offload = None if self._mover is None else self._mover.stats()
            if self._registry is not None:
                adapters = self._registry.pool.stats(self._scheduler.requests())
        if self._registry is not None and adapters is not None:
            adapters = self._registry.with_registered(adapters)
        return ExecutorStats(
            **asdict(counts),
            memory_bytes=resident_bytes(),
            pinned_memory_bytes=0 if self._mover is None else self._mover.pinned_bytes,
            speculation=self._speculator.stats(),
            adapters=adapters,
            offload=offload,
        )

    def kv_events(self, since: int) -> None:
        """See Executor.kv_events: the cache is counted, and its events are not kept."""

    def drain(self, timeout: float) -> bool:
        """See Executor.drain."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._is_draining = True
            while self._sinks and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            unfinished = list(self._sinks)
            self._aborted.extend((request_id, None) for request_id in unfinished)
            self._changed.notify_all()
            return not unfinished

    def close(self) -> None:
        """See Executor.close."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        if self._mover is not None:
            self._mover.close()
        at_end, self._at_end = self._at_end, lambda: None
        at_end()
        if self._loader is not None:
            self._loader.close()
        if self._guides is not None:
            self._guides.close()
        self._speculator.close()
        self._runner.close()

    def _run(self) -> None:
        while (plan := self._next_plan()) is not None:
            self._deliver()
            try:
                self._step(plan)
            except RunnerLost as error:
                self.lose(str(error))
            except Exception:  # A bug of ours: everybody hears of it, and whoever comes next is served.
                logger.exception("a step failed outside of the runner")
                with self._lock:
                    self._scheduler.fail(ExecutorFailed("the step failed; see the server's log"))
            self._deliver()
        with self._lock:
            if self._loss is not None:
                self._scheduler.fail(ExecutorFailed(self._loss))
            for request_id in self._sinks:
                self._scheduler.abort(request_id, error=Cancelled("the server is shutting down"))
        self._deliver()

    def _step(self, plan: Plan) -> None:
        if self._launcher is not None and may_launch(plan, self._speculator.guesses_for):
            self._launch_all(plan, self._launcher)
            return
        started = time.perf_counter()
        self._copy()  # Before a head guesses on in blocks of the plan.
        drafts = self._speculator.propose(plan)
        with self._lock:
            plan = self._scheduler.with_drafts(plan, drafts)
        if self._guides is not None and (guided := self._guides.masking.masks(plan)) is not None:
            plan = self._guided(plan, guided)
        self._copy()  # Drafts may have taken blocks.
        self._take_in(compute(self._runner, plan), started)

    def _launch_all(self, plan: Plan, launcher: LaunchingRunner) -> None:
        """Run a step, and behind it as many as can be planned ahead, each launched before the one before it is collected.

        Nothing is in flight any more when it returns.
        """
        started = time.perf_counter()
        flight = self._launch(plan, launcher)
        if flight is None:
            self._take_in(compute(self._runner, plan), started, was_passed_over=True)
        while flight is not None:
            ahead = self._plan_ahead(flight.plan)
            following = None if ahead is None else self._launch(ahead, launcher)
            landed = land(self._runner, flight)
            flight = None if landed.was_retried else following
            self._take_in(landed, started, None if flight is None else flight.plan, was_passed_over=True)
            self._deliver()
            started = time.perf_counter()

    def _launch(self, plan: Plan, launcher: LaunchingRunner) -> Flight | None:
        """Launch a plan; None if that fails: it is planned anew then."""
        self._speculator.pass_over(plan)
        if self._guides is not None:
            self._guides.masking.masks(plan)  # It hears who has ended; nobody here draws by a guide.
        self._copy()
        try:
            return Flight(plan, launcher.launch(plan))
        except RunnerLost:
            raise
        except Exception:
            logger.exception("a step of %d sequences could not be launched", len(plan.scheduled))
            return None

    def _plan_ahead(self, flight: Plan) -> Plan | None:
        """The step behind the one in flight; None where that has to be collected first."""
        with self._lock:
            if self._is_closing or self._loss is not None:
                return None
            self._take_note()
            return self._scheduler.schedule_ahead(flight, self._speculator.guesses_for)

    def _take_in(
        self, step: Computed, started: float, ahead: Plan | None = None, was_passed_over: bool = False
    ) -> None:
        """A step has run. started: when it began, or the one before it was taken in. ahead: the step behind it, in flight.

        was_passed_over: by the speculator.
        """
        plan, output = step.plan, step.output
        culprits = step.culprits | {
            sequence_id: drawn.error for sequence_id, drawn in output.outputs.items() if drawn.error
        }
        with self._lock:
            for sequence_id, error in culprits.items():
                self._scheduler.fail(error, [sequence_id])
            try:
                self._scheduler.update(plan, output, ahead)
            except RuntimeError:
                logger.exception("the runner broke its contract")
                self._scheduler.fail(ExecutorFailed("the step's output was unusable; see the server's log"))
        now = time.perf_counter()
        seconds, interval, self._taken_in = now - started, now - self._taken_in, now
        self._speculator.observe(plan, output, seconds, interval, was_passed_over)
        if self._mover is not None:
            self._mover.observe_step(plan, seconds)

    def _copy(self) -> None:
        """Move out what is about to be written over, and let the other copies begin."""
        if self._mover is not None and self._mover.has_copies:
            with self._lock:
                copies = self._mover.take()
            self._mover.begin(copies)

    def _guided(self, plan: Plan, step: GuidedStep) -> Plan:
        """The plan as guides leave it."""
        with self._lock:
            for sequence_id, error in step.refused.items():
                self._scheduler.fail(error, [sequence_id])
            return self._scheduler.with_guides(plan, step.masks, step.over)

    def _next_plan(self) -> Plan | None:
        """Wait for work and plan a step; None once closing, or without a runner."""
        with self._changed:
            while True:
                while not (
                    self._scheduler.has_work or self._aborted or self._is_closing or self._loss or self._has_news
                ):
                    self._changed.wait()
                    self._taken_in = time.perf_counter()
                if self._is_closing or self._loss is not None:
                    return None
                self._take_note()
                plan = self._scheduler.schedule()
                has_copies = self._mover is not None and self._mover.has_copies
                if plan.scheduled or plan.finished_sequence_ids or self._scheduler.outbox or has_copies:
                    return plan
                if self._scheduler.has_work:  # All that live wait for adapters, guides or blocks.
                    self._changed.wait(self._scheduler.seconds_to_deadline())
                    self._taken_in = time.perf_counter()

    def _take_note(self) -> None:
        """Of what happened since the last plan. Under the lock."""
        for request_id, index in self._aborted:
            self._scheduler.abort(request_id, index=index)
        self._aborted.clear()
        if self._mover is not None:
            self._mover.hear()

    @property
    def _has_news(self) -> bool:
        return self._mover is not None and self._mover.has_news

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _deliver(self) -> None:
        with self._changed:
            deliveries, ended = self._sinks.take(self._scheduler.take_deltas())
            for request_id in ended:
                self._logits_budget.release(request_id)
            if not self._sinks:
                self._changed.notify_all()
        for sink, delta in deliveries:
            sink(delta)
