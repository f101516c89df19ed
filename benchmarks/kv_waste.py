"""Benchmark `kv_waste`: KV slots allocated but unused while thousands of sequences of random lengths come and go.

The real scheduler and block bookkeeping run under a clock of their own; only the model is left out, since waste does
not depend on what is drawn. Waste between two steps is 1 - used_slots / (used_blocks * tokens_per_block), and the
figure is its mean over time. PagedAttention (Kwon et al., SOSP 2023) promises under 4 %. A block is half empty on
average at the end of a sequence, so sequences much shorter than a block's size times 12 must waste more: shown too.
Beside it: what reserving max_seq_len slots for each running sequence would have wasted in the same steps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from trierarch.benchmarks import provenance
from trierarch.benchmarks.machine import Machine
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Better, Figure, Goal, Of, Report, Row, compare
from trierarch.builder.manifest import KvCache, Limits
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import Plan, SequenceOutput, StepOutput
from trierarch.python_backend.scheduling.scheduler import Scheduler

GOAL_PERCENT: Final = 4
VOCAB_SIZE: Final = 49_152
MAX_SEQ_LEN: Final = 2048
NUM_BLOCKS: Final = 2912
"""1 GiB of the demo model's KV cache in bfloat16."""
STEP_SECONDS: Final = 0.010
SECONDS_PER_TOKEN: Final = 0.0015
"""A step's modelled duration: what reading weights takes, and each token's computing."""
RESERVATION: Final = "reserve max_seq_len"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests with lengths drawn evenly from ranges, arriving as a Poisson process."""

    name: str
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    requests_per_second: float
    goal: Goal | None = None


LOADS: Final = (
    Load(
        name="mixed",
        prompt_tokens=(32, 512),
        output_tokens=(16, 256),
        requests_per_second=4.0,
        goal=Goal(Of.VALUE, GOAL_PERCENT),
    ),
    Load(name="long", prompt_tokens=(512, 1536), output_tokens=(128, 512), requests_per_second=1.0),
    Load(name="short", prompt_tokens=(8, 64), output_tokens=(8, 64), requests_per_second=12.0),
)


def run(options: Options) -> Iterator[Report]:
    """Run each load to its end."""
    num_requests = 100 if options.is_quick else 4000
    yield Report(
        benchmark="kv_waste",
        is_quick=options.is_quick,
        date=provenance.now(),
        commit=provenance.commit(),
        seed=options.seed,
        machine=Machine.here().to_dict(),
        versions=provenance.versions(("trierarch",)),
        lengths={load.name: asdict(load) for load in LOADS}
        | {"num_requests": num_requests, "num_blocks": NUM_BLOCKS, "max_seq_len": MAX_SEQ_LEN}
        | {"block_size": block_size()},
        rows=tuple(row for load in LOADS for row in _rows(load, num_requests, options)),
    )


def block_size() -> int:
    """What engines are built with unless told otherwise."""
    size: int = KvCache.model_fields["block_size"].default
    return size


def _rows(load: Load, num_requests: int, options: Options) -> list[Row]:
    options.say(f"{num_requests} {load.name} sequences")
    waste = measure(load, num_requests, options.seed)
    figure = Figure(name=f"kv_waste_{load.name}", unit="%", better=Better.LOWER, goal=load.goal)
    reserved = Measurement.of([100 * waste.reserved])
    return compare(figure, "scheduler", Measurement.of([100 * waste.paged]), {RESERVATION: reserved})


@dataclass(frozen=True, slots=True)
class Waste:
    """Time-weighted means, as shares."""

    paged: float
    reserved: float
    """Had every running sequence held MAX_SEQ_LEN slots."""


def measure(load: Load, num_requests: int, seed: int) -> Waste:
    """Schedule `num_requests` of `load`, step by step, until the last has finished."""
    clock = VirtualClock()
    kv = KVCacheManager(NUM_BLOCKS, block_size())
    config = SchedulerConfig(
        max_batch_size=Limits.model_fields["max_batch_size"].default,
        max_seq_len=MAX_SEQ_LEN,
        max_num_tokens=Limits.model_fields["max_num_tokens"].default,
        max_queue_size=num_requests,
    )
    scheduler = Scheduler(config, kv, (), clock)
    arrivals = requests(load, num_requests, seed)
    coming = next(arrivals, None)
    busy = paged = reserved = 0.0
    while coming is not None or scheduler.has_work:
        while coming is not None and (coming.arrival_time <= clock.seconds or not scheduler.has_work):
            clock.seconds = max(clock.seconds, coming.arrival_time)
            scheduler.add(coming)
            coming = next(arrivals, None)
        plan = scheduler.schedule()
        duration = STEP_SECONDS + plan.num_tokens * SECONDS_PER_TOKEN
        clock.seconds += duration
        scheduler.update(plan, draw(plan))
        scheduler.take_deltas()
        stats = scheduler.stats()
        if stats.used_blocks:
            num_running = stats.num_active_requests - scheduler.num_queued_requests - stats.num_paused_requests
            busy += duration
            paged += duration * (1 - stats.used_slots / (stats.used_blocks * stats.tokens_per_block))
            reserved += duration * (1 - stats.used_slots / (num_running * MAX_SEQ_LEN))
    return Waste(paged / busy, reserved / busy)


@dataclass(slots=True)
class VirtualClock:
    """Time that passes only when a step says so."""

    seconds: float = 0.0

    def __call__(self) -> int:
        """Nanoseconds."""
        return int(self.seconds * 1e9)


def requests(load: Load, count: int, seed: int) -> Iterator[Request]:
    """`count` requests in order of arrival, none sharing a prefix."""
    random_source = random.Random(f"{seed}/{load.name}")
    arrival = 0.0
    for index in range(count):
        arrival += random_source.expovariate(load.requests_per_second)
        length = random_source.randint(*load.prompt_tokens)
        yield Request(
            request_id=str(index),
            prompt_token_ids=tuple(random_source.choices(range(VOCAB_SIZE), k=length)),
            sampling=SamplingParams(max_tokens=random_source.randint(*load.output_tokens), end_ids=()),
            arrival_time=arrival,
        )


def draw(plan: Plan) -> StepOutput:
    """What a model would return, with the same token for everyone."""
    return StepOutput(
        {item.sequence.sequence_id: SequenceOutput((0,) if item.samples else ()) for item in plan.scheduled}
    )
