"""LateRunner: a fake runner with a device beside the host: steps are computed in order, and nobody hears of one before its time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from trierarch.python_backend.errors import ExecutorFailed
from trierarch.python_backend.executors.fake import FakeRunner
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, SequenceOutput, StepOutput

MOST_IN_FLIGHT = 2


class LateRunner(FakeRunner):
    """Implements LaunchingRunner. A step that fails, or draws nothing for somebody, does so when it is collected."""

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int) -> None:
        super().__init__(num_blocks, block_size, vocab_size)
        self.gate = threading.Event()
        """Open; no step runs, nor is any collected, while it is closed."""
        self.gate.set()
        self.events: list[str] = []
        """"launch 0", "launch 1", "collect 0", "run", ... in their order"""
        self.plans: list[Plan] = []
        """Those launched"""
        self.at_launch: Callable[[Plan], None] = lambda plan: None
        self.at_collect: Callable[[Plan], None] = lambda plan: None
        """May raise; and for plans that are run too."""
        self.undrawable: set[str] = set()
        """Ids of requests for which nothing can be drawn"""
        self.is_closed = False
        self._drawn: dict[int, int] = {}
        self._num_in_flight = 0

    def launch(self, plan: Plan) -> _Late:
        self.events.append(f"launch {len(self.plans)}")
        assert self._num_in_flight < MOST_IN_FLIGHT
        self.at_launch(plan)
        step = _Late(self, plan, super().run(plan), len(self.plans))
        self.plans.append(plan)
        self._drawn = {one: drawn.token_ids[0] for one, drawn in step.output.outputs.items() if drawn.token_ids}
        self._num_in_flight += 1
        return step

    def land(self, step: _Late) -> StepOutput:
        assert self.gate.wait(60)
        self.events.append(f"collect {step.number}")
        self._num_in_flight -= 1
        self.at_collect(step.plan)
        return self._with_errors(step.plan, step.output)

    def run(self, plan: Plan) -> StepOutput:
        assert self.gate.wait(60)
        self.events.append("run")
        self._num_in_flight = 0  # what was launched behind a step that failed is forgotten
        self.at_collect(plan)
        assert not any(item.is_late for item in plan.scheduled)
        return self._with_errors(plan, super().run(plan))

    def close(self) -> None:
        self.is_closed = True

    def _run_one(self, item: ScheduledSequence) -> SequenceOutput:
        if not item.is_late:
            return super()._run_one(item)
        sequence = item.sequence
        as_it_will_be = replace(sequence, token_ids=[*sequence.token_ids, self._drawn[sequence.sequence_id]])
        return super()._run_one(replace(item, sequence=as_it_will_be))

    def _with_errors(self, plan: Plan, output: StepOutput) -> StepOutput:
        error = SequenceOutput(error=ExecutorFailed("the model's logits are not finite"))
        ids = [i.sequence.sequence_id for i in plan.scheduled if i.sequence.request.request_id in self.undrawable]
        return StepOutput(output.outputs | dict.fromkeys(ids, error))


@dataclass
class _Late:
    runner: LateRunner
    plan: Plan
    output: StepOutput
    number: int

    def collect(self) -> StepOutput:
        return self.runner.land(self)
