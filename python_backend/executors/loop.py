"""StepExecutor: the loop. The step is the sentence: plan = schedule(), output = run(plan), update(plan, output).

Between the first and the second the speculator may put drafts behind what has to be computed.

One thread owns the runner and calls every sink. Other threads only queue: `submit` adds to the scheduler's waiting
queue and `abort` leaves a note, both under the lock; neither touches a sequence that a step is computing. Blocks are
therefore given back before the next plan is made and never under a running step.
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
from trierarch.python_backend.errors import Cancelled, ExecutorFailed, ServingError, ShuttingDown, UnknownAdapter
from trierarch.python_backend.executors.executor import ExecutorStats, Sink
from trierarch.python_backend.executors.logits_budget import LogitsBudget
from trierarch.python_backend.executors.machine import resident_bytes
from trierarch.python_backend.executors.offload.mover import Mover
from trierarch.python_backend.executors.runner import Runner, RunnerLost
from trierarch.python_backend.guides.guides import Guides
from trierarch.python_backend.guides.masking import GuidedStep
from trierarch.python_backend.request import Request, TokenDelta, check_token_ids
from trierarch.python_backend.scheduling.admission import NO_ADAPTERS
from trierarch.python_backend.scheduling.plan import Plan, SequenceOutput, StepOutput
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
    ) -> None:
        """`speculator` None verifies the requests' own drafts and no others. `registry`, `guides`: the scheduler's.

        at_end: called once, when the last step has run and before the runner closes. mover: of the scheduler's cache, where
        that has tiers behind it.
        """
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
        self._sinks: dict[str, _Subscriber] = {}
        self._aborted: list[tuple[str, int | None]] = []
        self._is_draining = False
        self._is_closing = False
        self._loss: str | None = None
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
            self._sinks[request.request_id] = _Subscriber(sink, request.sampling.n)
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
        started = time.perf_counter()
        self._copy()  # Before a head guesses on in blocks of the plan.
        drafts = self._speculator.propose(plan)
        with self._lock:
            plan = self._scheduler.with_drafts(plan, drafts)
        if self._guides is not None and (guided := self._guides.masking.masks(plan)) is not None:
            plan = self._guided(plan, guided)
        self._copy()  # Drafts may have taken blocks.
        output, culprits = self._compute(plan)
        culprits |= {sequence_id: drawn.error for sequence_id, drawn in output.outputs.items() if drawn.error}
        with self._lock:
            for sequence_id, error in culprits.items():
                self._scheduler.fail(error, [sequence_id])
            try:
                self._scheduler.update(plan, output)
            except RuntimeError:
                logger.exception("the runner broke its contract")
                self._scheduler.fail(ExecutorFailed("the step's output was unusable; see the server's log"))
        seconds = time.perf_counter() - started
        self._speculator.observe(plan, output, seconds)
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
                if self._is_closing or self._loss is not None:
                    return None
                for request_id, index in self._aborted:
                    self._scheduler.abort(request_id, index=index)
                self._aborted.clear()
                if self._mover is not None:
                    self._mover.hear()
                plan = self._scheduler.schedule()
                has_copies = self._mover is not None and self._mover.has_copies
                if plan.scheduled or plan.finished_sequence_ids or self._scheduler.outbox or has_copies:
                    return plan
                if self._scheduler.has_work:  # All that live wait for adapters, guides or blocks.
                    self._changed.wait(self._scheduler.seconds_to_deadline())

    @property
    def _has_news(self) -> bool:
        return self._mover is not None and self._mover.has_news

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _compute(self, plan: Plan) -> tuple[StepOutput, dict[int, ServingError]]:
        """Run a plan; if the step fails, run it again one sequence at a time so that only the culprit ends."""
        try:
            return self._runner.run(plan), {}
        except RunnerLost:
            raise
        except Exception:
            logger.exception("a step of %d sequences failed; retrying them one by one", len(plan.scheduled))
        outputs: dict[int, SequenceOutput] = {}
        culprits: dict[int, ServingError] = {}
        for item in plan.scheduled:
            sequence_id = item.sequence.sequence_id
            try:
                outputs |= self._runner.run(Plan((item,))).outputs
            except RunnerLost:
                raise
            except Exception as error:
                logger.exception("request %s failed", item.sequence.request.request_id)
                culprits[sequence_id] = ExecutorFailed(f"the step failed: {type(error).__name__}; see the server's log")
        return StepOutput(outputs), culprits

    def _deliver(self) -> None:
        with self._changed:
            deltas = self._scheduler.take_deltas()
            deliveries = [(self._sinks[delta.request_id].sink, delta) for delta in deltas]
            for delta in deltas:
                if delta.finish_reason is not None and self._sinks[delta.request_id].finish_one():
                    del self._sinks[delta.request_id]
                    self._logits_budget.release(delta.request_id)
            if not self._sinks:
                self._changed.notify_all()
        for sink, delta in deliveries:
            sink(delta)


class _Subscriber:
    """A request's sink and how many of its sequences still run."""

    def __init__(self, sink: Callable[[TokenDelta], None], num_sequences: int) -> None:
        self.sink = sink
        self._num_unfinished = num_sequences

    def finish_one(self) -> bool:
        """Note that one sequence ended; whether it was the last."""
        self._num_unfinished -= 1
        return self._num_unfinished == 0
