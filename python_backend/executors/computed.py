"""Computed: what became of a step. One that failed is run again one sequence at a time, so that only the culprit ends."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from trierarch.python_backend.errors import ExecutorFailed, ServingError
from trierarch.python_backend.executors.runner import Launched, Runner, RunnerLost
from trierarch.python_backend.scheduling.plan import Plan, SequenceOutput, StepOutput

logger = logging.getLogger(__name__)

_FAILED: Final = "a step of %d sequences failed; retrying them one by one"


@dataclass(frozen=True, slots=True)
class Flight:
    """A step between its launch and its landing."""

    plan: Plan
    launched: Launched


@dataclass(frozen=True, slots=True)
class Computed:
    """A step that has run."""

    plan: Plan
    output: StepOutput
    culprits: dict[int, ServingError] = field(default_factory=dict)
    """sequence_id -> why its part of the step failed."""
    was_retried: bool = False
    """Whether it failed as a whole: what was launched behind it went on from nothing."""


def compute(runner: Runner, plan: Plan) -> Computed:
    """Run a plan.

    Raises:
        RunnerLost: see Runner.run.
    """
    try:
        return Computed(plan, runner.run(plan))
    except RunnerLost:
        raise
    except Exception:
        logger.exception(_FAILED, len(plan.scheduled))
        return _one_by_one(runner, plan)


def land(runner: Runner, flight: Flight) -> Computed:
    """Collect a step; those that ended since it was launched are left out. What it computed of others must be known by now.

    Raises:
        RunnerLost: see Runner.run.
    """
    plan = flight.plan.of_the_running()
    try:
        outputs = flight.launched.collect().outputs
        ids = [item.sequence.sequence_id for item in plan.scheduled]
        return Computed(plan, StepOutput({one: outputs[one] for one in ids if one in outputs}))
    except RunnerLost:
        raise
    except Exception:
        logger.exception(_FAILED, len(plan.scheduled))
        return _one_by_one(runner, plan)


def _one_by_one(runner: Runner, plan: Plan) -> Computed:
    outputs: dict[int, SequenceOutput] = {}
    culprits: dict[int, ServingError] = {}
    for item in plan.scheduled:
        sequence_id = item.sequence.sequence_id
        try:
            outputs |= runner.run(Plan((item,))).outputs
        except RunnerLost:
            raise
        except Exception as error:
            logger.exception("request %s failed", item.sequence.request.request_id)
            culprits[sequence_id] = ExecutorFailed(f"the step failed: {type(error).__name__}; see the server's log")
    return Computed(plan, StepOutput(outputs), culprits, was_retried=True)
