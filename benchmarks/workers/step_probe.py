"""Our embedded executor with its steps timed: how much of a decode step is not spent in the compiled kernels.

Everything is timed from outside, by replacing in this process what the engine's loop calls: nothing in the executor
knows of it. A step lasts from the runner's call to its next call, so that scheduling, delivering and waiting for the
interpreter's lock count too.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest import mock

from trierarch.benchmarks.workers.executor import ExecutorWorker
from trierarch.benchmarks.workers.protocol import TokenIds, serve
from trierarch.python_backend.executors.cpu import model
from trierarch.python_backend.executors.cpu.abi import open_library
from trierarch.python_backend.executors.cpu.runner import CpuRunner
from trierarch.python_backend.executors.sampling.sampler import Sampler
from trierarch.python_backend.scheduling.plan import Plan, StepOutput

KERNELS: Final = ("trierarch_decoder_hidden", "trierarch_decoder_logits")
T = TypeVar("T")


class StepClock:
    """Sums up the time of whole decode steps: those that compute one token for each of a given number of sequences.

    Steps with prompt tokens, or with fewer sequences, are left out; so is the last step before a pause.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self.reset(0)

    def reset(self, num_sequences: int) -> None:
        """Forget everything; count steps of `num_sequences` from now on."""
        self._num_sequences = num_sequences
        self._sums = {"step_seconds": 0.0, "kernel_seconds": 0.0, "sampling_seconds": 0.0, "num_steps": 0.0}
        self._parts: dict[str, float] = {}
        self._is_counted = False
        self._began = 0.0

    def begin(self, plan: Plan) -> None:
        """Note that a step begins, and thereby that the one before has ended."""
        now = self._clock()
        if self._is_counted:
            self._parts |= {"step_seconds": now - self._began, "num_steps": 1.0}
            for name, value in self._parts.items():
                self._sums[name] += value
        self._parts = {}
        self._is_counted = plan.num_tokens == len(plan.scheduled) == self._num_sequences and not plan.num_context_tokens
        self._began = now

    def time(self, part: str, action: Callable[..., T], *arguments: Any) -> T:
        """Do something that belongs to `part` of the present step."""
        started = self._clock()
        try:
            return action(*arguments)
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + self._clock() - started

    def sums(self) -> dict[str, float]:
        """Seconds by part, and the number of steps."""
        return dict(self._sums)


class TimedLibrary:
    """A compiled library whose kernels are timed."""

    def __init__(self, library: ctypes.CDLL, clock: StepClock) -> None:
        self._library = library
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        """The library's function, or one that times it."""
        function = getattr(self._library, name)
        if name not in KERNELS:
            return function
        return lambda *arguments: self._clock.time("kernel_seconds", function, *arguments)


class StepProbeWorker(ExecutorWorker):
    """Counts the parts of each call's decode steps."""

    def __init__(self, engine: Path) -> None:
        """Load `engine`."""
        self._clock = StepClock()
        _install(self._clock)
        super().__init__(engine)

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """See ExecutorWorker.generate."""
        self._clock.reset(len(prompts))
        return super().generate(prompts, num_output_tokens)

    def counters(self) -> dict[str, float]:
        """See Counting.counters."""
        return self._clock.sums()


def _install(clock: StepClock) -> None:
    """Time every step of this process from now on."""
    run, sample = CpuRunner.run, Sampler.sample

    def timed_run(runner: CpuRunner, plan: Plan) -> StepOutput:
        clock.begin(plan)
        return run(runner, plan)

    def timed_sample(*arguments: Any) -> Any:
        return clock.time("sampling_seconds", sample, *arguments)

    mock.patch.object(model, "open_library", lambda path: TimedLibrary(open_library(path), clock)).start()
    mock.patch.object(CpuRunner, "run", timed_run).start()
    mock.patch.object(Sampler, "sample", timed_sample).start()


if __name__ == "__main__":
    serve(StepProbeWorker)
