"""Scheduler and runner stepped on the calling thread, for tests that look at what each step did."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.computed import Flight, land
from trierarch.python_backend.executors.runner import LaunchingRunner, Runner
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import Request, SamplingParams, TokenDelta, TokenLogprob, Usage
from trierarch.python_backend.scheduling.ahead import may_launch
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, StepOutput
from trierarch.python_backend.scheduling.scheduler import Scheduler


@dataclass
class Stepper:
    """One engine being served, without threads."""

    scheduler: Scheduler
    runner: Runner
    kv: KVCacheManager
    deltas: dict[str, list[TokenDelta]] = field(default_factory=dict)
    """request id -> what came out so far, all sequences of the request together"""
    num_requests: int = 0
    answers: dict[int, list[int]] = field(default_factory=dict)
    """sequence id -> what it is known to draw, where drafts are wanted"""
    rightness: str = "right"
    """Of drafts: `right`, `wrong`, or `mixed`, which is right in some places and wrong behind them"""
    propose: Callable[[Plan], dict[int, tuple[int, ...]]] | None = None
    """Who drafts, as the speculator would; None drafts from `answers`"""

    @classmethod
    def open(cls, manifest: EngineManifest, runner: Runner, num_blocks: int | None = None, **settings: Any) -> Stepper:
        """`num_blocks` is fewer than the runner has; `settings` are of the SchedulerConfig or `enable_prefix_caching`."""
        limits, kv_cache = manifest.limits, manifest.kv_cache
        has_prefixes = settings.pop("enable_prefix_caching", kv_cache.enable_prefix_caching)
        kv = KVCacheManager(num_blocks or runner.num_blocks, kv_cache.block_size, has_prefixes)
        config = SchedulerConfig(**{**limits.model_dump(), **settings})
        return cls(Scheduler(config, kv, manifest.tokens.eos), runner, kv)

    def add(self, prompt: Sequence[int], **sampling: Any) -> str:
        """Queue a request; greedy and without end tokens unless `sampling` says otherwise. Returns its id."""
        request_id, self.num_requests = str(self.num_requests), self.num_requests + 1
        params = SamplingParams(**{"max_tokens": 16, "temperature": 0.0, "end_ids": (), **sampling})
        self.scheduler.add(
            Request(
                request_id=request_id, prompt_token_ids=tuple(prompt), sampling=params, arrival_time=time.monotonic()
            )
        )
        self.deltas[request_id] = []
        return request_id

    def step(self) -> None:
        """Schedule, run, update."""
        plan = self.scheduler.schedule()
        plan = self.scheduler.with_drafts(plan, (self.propose or self.known_drafts)(plan))
        self._take_in(plan, self.runner.run(plan))

    def _take_in(self, plan: Plan, output: StepOutput, ahead: Plan | None = None) -> None:
        for sequence_id, its in output.outputs.items():
            if its.error is not None:
                self.scheduler.fail(its.error, [sequence_id])
        self.scheduler.update(plan, output, ahead)
        for delta in self.scheduler.take_deltas():
            self.deltas[delta.request_id].append(delta)

    def fly(self, meanwhile: Callable[[], object] = lambda: None) -> int:
        """Steps launched as the loop launches them, the first and all that can be planned ahead behind it: how many these are.

        The runner must be a LaunchingRunner. meanwhile: happens while each is in flight.
        """
        plan = self.scheduler.schedule()
        if not may_launch(plan, _nobody):
            self._take_in(plan, self.runner.run(plan))
            return 0
        assert isinstance(self.runner, LaunchingRunner)
        flight: Flight | None = Flight(plan, self.runner.launch(plan))
        num_ahead = 0
        while flight is not None:
            meanwhile()
            ahead = self.scheduler.schedule_ahead(flight.plan, _nobody)
            following = None if ahead is None else Flight(ahead, self.runner.launch(ahead))
            landed = land(self.runner, flight)
            assert not landed.was_retried
            self._take_in(landed.plan, landed.output, ahead)
            flight = following
            num_ahead += following is not None
        return num_ahead

    def known_drafts(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        """Drafts from `answers`."""
        return {item.sequence.sequence_id: self._draft(item) for item in plan.scheduled}

    def _draft(self, item: ScheduledSequence) -> tuple[int, ...]:
        sequence = item.sequence
        done = sequence.num_output_tokens
        right = self.answers.get(sequence.sequence_id, [])[done : done + 4]
        num_right = {"right": len(right), "wrong": 0, "mixed": done % 3}[self.rightness]
        return tuple(token if place < num_right else (token or 2) - 1 for place, token in enumerate(right))

    def finish(self) -> None:
        """Step until nothing is left."""
        while self.scheduler.has_work:
            self.step()

    def token_ids(self, request_id: str) -> list[int]:
        """What the request's only sequence has drawn."""
        return [token for delta in self.deltas[request_id] for token in delta.token_ids]

    def streams(self) -> dict[tuple[str, int], list[int]]:
        """(request id, index) -> what that sequence has drawn."""
        streams: dict[tuple[str, int], list[int]] = {}
        for request_id, deltas in self.deltas.items():
            for delta in deltas:
                streams.setdefault((request_id, delta.index), []).extend(delta.token_ids)
        return streams

    def logprobs(self) -> list[TokenLogprob]:
        """All that came out since the last `forget`, request by request."""
        return [entry for deltas in self.deltas.values() for delta in deltas for entry in delta.logprobs or ()]

    def usages(self) -> list[Usage]:
        """Of every sequence that has finished since the last `forget`."""
        return [delta.usage for deltas in self.deltas.values() for delta in deltas if delta.usage is not None]

    def forget(self) -> None:
        """Drop the deltas seen so far."""
        self.deltas.clear()

    def generate(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[list[int]]:
        """Add all prompts at once and finish them."""
        request_ids = [self.add(prompt, **sampling) for prompt in prompts]
        self.finish()
        return [self.token_ids(request_id) for request_id in request_ids]


def _nobody(request: Request) -> bool:
    return False
