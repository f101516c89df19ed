"""Our embedded executor with decode steps under torch's profiler: what the device runs, and how long it waits for the host.

The runner's own thread is profiled, from outside: nothing in the executor knows of it. Twice: once with the device's
activities alone, which hardly slows the host down and gives the figure, and once with the host's too, for a trace to read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from trierarch.benchmarks.intervals import Interval, idle_share
from trierarch.benchmarks.workers.gpu_executor import GpuExecutorWorker
from trierarch.benchmarks.workers.gpu_settings import FIRST_STEP, NUM_STEPS, TRACE_VARIABLE
from trierarch.benchmarks.workers.protocol import TokenIds, serve
from trierarch.python_backend.executors.torch.runner import TorchRunner
from trierarch.python_backend.scheduling.plan import Plan


class StepProfiler:
    """Profiles NUM_STEPS decode steps of each call, behind FIRST_STEP of them."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._profile: Any = None
        self._num_steps = 0
        self._is_detailed = False
        self.intervals: list[Interval] = []
        """Of the device's work, of the last call that was not detailed; on a CPU of its operators."""

    def reset(self, is_detailed: bool) -> None:
        """Begin a call, with the host's activities where it is `is_detailed`."""
        self._num_steps = 0
        self._is_detailed = is_detailed
        if not is_detailed:
            self.intervals = []

    def begin(self, plan: Plan) -> None:
        """Note that a step begins."""
        if plan.num_context_tokens or not plan.scheduled:
            return
        self._num_steps += 1
        if self._num_steps == FIRST_STEP:
            self._profile = profile(activities=self._activities())
            self._profile.start()
        elif self._num_steps == FIRST_STEP + NUM_STEPS and self._profile is not None:
            self._end()

    def _activities(self) -> list[ProfilerActivity]:
        if self._device == "cpu":
            return [ProfilerActivity.CPU]
        return [ProfilerActivity.CUDA, *((ProfilerActivity.CPU,) if self._is_detailed else ())]

    def _end(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()
        done, self._profile = self._profile, None
        done.stop()
        if self._is_detailed:
            if path := os.environ.get(TRACE_VARIABLE):
                done.export_chrome_trace(path)
            return
        kind = self._device.upper()
        self.intervals = [
            (event.time_range.start, event.time_range.end) for event in done.events() if event.device_type.name == kind
        ]


class GpuProfileWorker(GpuExecutorWorker):
    """Counts the device's idle share over each call's decode steps, and what it ran in one."""

    def __init__(self, engine: Path) -> None:
        """Load `engine`."""
        self._profiler = StepProfiler("cuda" if torch.cuda.is_available() else "cpu")
        for name in ("run", "launch"):
            self._profile_each(name)
        super().__init__(engine)

    def _profile_each(self, name: str) -> None:
        """Of a runner's methods that compute a plan."""
        compute = getattr(TorchRunner, name)

        def profiled(runner: TorchRunner, plan: Plan) -> Any:
            self._profiler.begin(plan)
            return compute(runner, plan)

        mock.patch.object(TorchRunner, name, profiled).start()

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """Twice."""
        for is_detailed in (False, True):
            self._profiler.reset(is_detailed)
            outputs = super().generate(prompts, num_output_tokens)
        return outputs

    def counters(self) -> dict[str, float]:
        """See Counting.counters: nothing of a call that was too short to be profiled."""
        intervals = self._profiler.intervals
        return {"idle_share": idle_share(intervals), "launches": len(intervals) / NUM_STEPS} if intervals else {}


if __name__ == "__main__":
    serve(GpuProfileWorker)
