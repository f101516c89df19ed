"""Our embedded executor with speculation in the benchmark's hand: adaptive as it is served, or of a fixed length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trierarch.benchmarks.workers.executor import ExecutorWorker
from trierarch.benchmarks.workers.protocol import Speculated, Steering, serve
from trierarch.python_backend.speculation.allotment import Allotment, BestRate, Chances, FixedLength, Share


class SteeredAllotment:
    """Implements Allotment: the executor's own, or a fixed length."""

    def __init__(self) -> None:
        """The executor's own."""
        self._adaptive = BestRate()
        self._policy: Allotment = self._adaptive

    def follow(self, speculated: Speculated) -> None:
        """Do so from the next step on."""
        self._policy = self._adaptive if isinstance(speculated, str) else FixedLength(speculated)

    def allot(self, chances: Sequence[Chances], seconds: Callable[[int], float], expected: float, pace: float) -> Share:
        """See Allotment.allot."""
        return self._policy.allot(chances, seconds, expected, pace)

    def length(self, chances: Sequence[Chances], seconds: Callable[[int], float], expected: float) -> Share:
        """See Allotment.length."""
        return self._policy.length(chances, seconds, expected)


class SpeculatingWorker(ExecutorWorker):
    """Follows its steering in the policy too."""

    def __init__(self, engine: Path) -> None:
        """Load `engine`."""
        self._allotment = SteeredAllotment()
        super().__init__(engine, self._allotment)

    def steer(self, steering: Steering) -> None:
        """See Steered.steer."""
        super().steer(steering)
        self._allotment.follow(steering.speculation)


if __name__ == "__main__":
    serve(SpeculatingWorker)
