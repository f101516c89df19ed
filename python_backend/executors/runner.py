"""The runner protocol: plan in, drawn tokens out. A runner owns the weights and the KV arrays and decides nothing."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from trierarch.builder.adapter import AdapterTensors
from trierarch.python_backend.adapters.active_adapter import Arranged
from trierarch.python_backend.executors.following import Follower
from trierarch.python_backend.scheduling.plan import Plan, StepOutput


class RunnerLost(Exception):
    """The runner computes nothing any more, whatever it is given: somebody it cannot do without is gone. Says who."""


class Runner(Protocol):
    """Computes one step at a time, on the executor's thread."""

    @property
    def num_blocks(self) -> int:
        """KV blocks the runner has room for."""
        ...

    def arrange(self, tensors: AdapterTensors) -> Arranged:
        """Lay an adapter's weights out for the steps of sequences that will have them in `Sequence.adapter`. Any thread.

        They were checked against the engine (`builder/adapter_check.py`).

        Raises:
            ResourceError: there is no room.
        """
        ...

    def run(self, plan: Plan) -> StepOutput:
        """Compute a plan: write its tokens' keys and values, draw a token for each sequence that samples.

        Running the same plan again gives the same result (keys and values are written to the same slots), which is
        what lets the loop retry a failed step one sequence at a time.

        Raises:
            RunnerLost: it will not run this or any other plan.
        """
        ...

    def close(self) -> None:
        """Give back memory. Idempotent."""
        ...


class Launched(Protocol):
    """A step that was launched."""

    def collect(self) -> StepOutput:
        """Wait until it has run; what it drew. What `run` raises may come here; then nothing of the step holds."""
        ...


@runtime_checkable
class LaunchingRunner(Runner, Protocol):
    """A runner whose device computes while the host goes on."""

    def launch(self, plan: Plan) -> Launched:
        """Let a plan be computed behind all that was launched and run before, without waiting for any of it.

        The plan is one that `may_launch` (scheduling/ahead.py). What is late of it was drawn by the step launched last.
        All that it needs of its sequences is read before it returns.

        Raises:
            RunnerLost: see Runner.run.
        """
        ...


class LeadRunner(Runner, Protocol):
    """A runner whose hidden states others may read. It must have been opened with the taps they want."""

    @property
    def device(self) -> str:
        """Where it computes, as torch names devices."""
        ...

    def lead(self, follower: Follower[Any]) -> None:
        """Show every step that runs from now on to `follower`, once its tokens are drawn and before they are returned."""
        ...
