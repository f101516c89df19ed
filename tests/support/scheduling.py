"""A scheduler on a CheckingRunner and a clock that only moves when told: all a story about scheduling needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from support.checking_runner import CheckingRunner
from support.memory_adapters import arrange_draft
from support.toy_mover import ToyMover, make_offload
from trierarch.python_backend.adapters.cache import AdapterCache
from trierarch.python_backend.adapters.pool import AdapterPool
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import Request, SamplingParams, TokenDelta, Usage
from trierarch.python_backend.scheduling.ahead import may_launch
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import Plan, StepOutput
from trierarch.python_backend.scheduling.scheduler import Scheduler
from trierarch.python_backend.sequence import Sequence, SequenceStatus
from trierarch.python_backend.speculation.speculator import Speculator

CONFIG_DEFAULTS: dict[str, Any] = {"max_batch_size": 8, "max_seq_len": 64, "max_num_tokens": 64, "max_queue_size": 64}


def make_request(request_id: str, prompt: tuple[int, ...] | int, *, max_tokens: int = 4, **fields: Any) -> Request:
    """A request; an int for `prompt` is its length. Fields of SamplingParams and of Request may be mixed."""
    sampling = {name: fields.pop(name) for name in list(fields) if name in SamplingParams.__dataclass_fields__}
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(range(1, prompt + 1)) if isinstance(prompt, int) else prompt,
        sampling=SamplingParams(max_tokens=max_tokens, **sampling),
        arrival_time=fields.pop("arrival_time", 0.0),
        **fields,
    )


class World:
    """Scheduler, KV cache, runner and clock, with everything that came out."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool = True,
        end_ids: tuple[int, ...] = (),
        vocab_size: int = 1000,
        guesses: tuple[bool, ...] = (),
        speculator: Speculator | None = None,
        max_adapters: int = 0,
        host_bytes: int = 100,
        tiers: tuple[int, int] = (0, 0),
        **config: Any,
    ) -> None:
        """tiers: blocks that host memory and disk hold beyond the KV cache."""
        self.now = 0.0
        offload = make_offload(*tiers)
        self.kv = KVCacheManager(num_blocks, block_size, enable_prefix_caching, offload)
        self.config = SchedulerConfig(**{**CONFIG_DEFAULTS, **config})
        self.end_ids = end_ids
        self.runner = CheckingRunner(block_size, vocab_size, guesses, max_adapters=max_adapters)
        self.mover = None if self.kv.offload is None else ToyMover(self.kv, self.runner)
        self.speculator = speculator
        self.cache = AdapterCache(host_bytes, self.runner.arrange, arrange_draft, lambda: self.now)
        self.adapters = AdapterPool(self.cache, max_adapters) if max_adapters else None
        self.scheduler = Scheduler(self.config, self.kv, end_ids, lambda: round(self.now * 1e9), self.adapters)
        self.loads_amid_steps = False
        """Whether the loader's thread comes late: never between two steps, but once while each runs"""
        self.num_in_vain = 0
        """Shares of launched steps whose sequences had ended when they landed"""
        self.deltas: dict[tuple[str, int], list[TokenDelta]] = defaultdict(list)
        """(request id, index) -> its stream"""
        self.plans: list[Plan] = []
        self.sequences: dict[tuple[str, int], Sequence] = {}
        """(request id, index) -> sequence, from its first step on"""

    def add(self, request_id: str, prompt: tuple[int, ...] | int, **fields: Any) -> None:
        """Add a request that arrives now."""
        self.scheduler.add(make_request(request_id, prompt, **{"arrival_time": self.now, **fields}))

    def load(self) -> bool:
        """What the loader's thread does once, if there is anything to load; whether there was."""
        return self.cache.load_next()

    def load_and_step(self) -> Plan:
        """One turn of the loop, and one of the loader's and of the mover's."""
        if not self.loads_amid_steps:
            self.load()
        if self.mover is not None:
            self.mover.finish()
        return self.step()

    def step(self) -> Plan:
        """One turn of the loop."""
        plan = self.plan()
        self.note(plan)
        self.scheduler.update(plan, self.run_plan(plan))
        self.collect()
        self.scheduler.check_integrity()
        return plan

    def plan(self) -> Plan:
        """The next step, with the speculator's drafts, or what the runner guesses where there is none."""
        return self._with_drafts(self.scheduler.schedule())

    def _with_drafts(self, plan: Plan) -> Plan:
        drafts = self.runner.drafts(plan) if self.speculator is None else self.speculator.propose(plan)
        plan = self.scheduler.with_drafts(plan, drafts)
        self._copy()
        return plan

    def run_plan(self, plan: Plan) -> StepOutput:
        """What the step draws; the speculator hears of it. A step takes ten milliseconds and one for each token."""
        output = self.runner.run(plan)
        if self.loads_amid_steps:
            self.load()
        if self.speculator is not None:
            self.speculator.observe(plan, output, 0.010 + 0.001 * plan.num_tokens)
        return output

    def fly(self, max_steps: int, meanwhile: Callable[[], object] = lambda: None, drops_last: bool = False) -> int:
        """The loop where it launches steps: each but the first is planned and launched while the one before it runs.

        It ends with the first that cannot be, or lands `max_steps`; of the last one nothing is heard if it is dropped.
        meanwhile: happens between any two things. How many steps were planned ahead.
        """
        plan = self.scheduler.schedule()
        if not may_launch(plan, self._guesses_for):
            plan = self._with_drafts(plan)
            self._land(plan, self.run_plan(plan))
            return 0
        self._copy()
        output = self._launch(plan)
        for num_ahead in range(max_steps):
            meanwhile()
            ahead = self.scheduler.schedule_ahead(plan, self._guesses_for)
            self._copy()
            following = None if ahead is None else self._launch(ahead)
            meanwhile()
            is_dropped = drops_last and num_ahead + 1 == max_steps
            self._land(plan, output, None if is_dropped else ahead)
            if ahead is None or following is None or is_dropped:
                return num_ahead
            plan, output = ahead, following
        self._land(plan, output)
        return max_steps

    def _guesses_for(self, request: Request) -> bool:
        return self.speculator is not None and self.speculator.guesses_for(request)

    def _launch(self, plan: Plan) -> StepOutput:
        assert len(plan.scheduled) <= self.config.max_batch_size
        assert plan.num_tokens <= self.config.token_budget
        if self.speculator is not None:
            self.speculator.pass_over(plan)
        output = self.runner.launch(plan)
        if self.loads_amid_steps:
            self.load()
        return output

    def _land(self, plan: Plan, output: StepOutput, ahead: Plan | None = None) -> None:
        self.note(plan)
        self.num_in_vain += sum(item.sequence.status is SequenceStatus.FINISHED for item in plan.scheduled)
        self.scheduler.update(plan, output, ahead)
        self.collect()
        self.scheduler.check_integrity()

    def _copy(self) -> None:
        if self.mover is not None:
            self.mover.make_copies()

    def note(self, plan: Plan) -> None:
        """Remember a plan and whom it moves."""
        self.plans.append(plan)
        for item in plan.scheduled:
            self.sequences[item.sequence.request.request_id, item.sequence.index] = item.sequence

    def collect(self) -> None:
        """Move the scheduler's deltas to the streams."""
        for delta in self.scheduler.take_deltas():
            stream = self.deltas[delta.request_id, delta.index]
            assert not (stream and stream[-1].finish_reason), f"{delta} follows the last delta"
            stream.append(delta)

    def run(self, max_steps: int = 1000) -> int:
        """Step until nothing is left to do, with a load before each; how many steps that took."""
        for num_steps in range(max_steps):
            if not self.scheduler.has_work:
                return num_steps
            self.load_and_step()
        raise AssertionError(f"still working after {max_steps} steps")

    def output(self, request_id: str, index: int = 0) -> list[int]:
        """All tokens streamed so far."""
        return [token for delta in self.deltas[request_id, index] for token in delta.token_ids]

    def last(self, request_id: str, index: int = 0) -> TokenDelta:
        """The stream's last delta."""
        return self.deltas[request_id, index][-1]

    def usage(self, request_id: str, index: int = 0) -> Usage:
        """What came with the last delta."""
        usage = self.last(request_id, index).usage
        assert usage is not None
        return usage

    def table(self, request_id: str, index: int = 0) -> list[int]:
        """The sequence's block table."""
        return self.sequences[request_id, index].block_table


def shares(plan: Plan) -> list[tuple[str, int, int]]:
    """(request id, start, tokens) of each scheduled sequence."""
    return [(item.sequence.request.request_id, item.start, item.num_tokens) for item in plan.scheduled]
