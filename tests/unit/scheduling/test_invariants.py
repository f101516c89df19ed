"""Anything may happen to the scheduler in any order; whatever does, the invariants hold and everyone is served."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.ordeal import Ordeal
from support.scheduling import World
from trierarch.python_backend.adapters.pool import AdapterPool
from trierarch.python_backend.kv.offload_stats import OffloadStats
from trierarch.python_backend.sequence import Sequence

seeds = st.integers(0, 2**32)


class SchedulerMachine(RuleBasedStateMachine):
    """Hypothesis seeks the shortest ordeal that breaks something."""

    @initialize(seed=seeds, arrivals=st.lists(seeds, min_size=1, max_size=5))
    def build(self, seed: int, arrivals: list[int]) -> None:
        self.ordeal = Ordeal(seed)
        for arrival in arrivals:
            self.ordeal.arrive(arrival)

    @rule(seed=seeds)
    def arrive(self, seed: int) -> None:
        self.ordeal.arrive(seed)

    @rule(seed=seeds)
    def cancel(self, seed: int) -> None:
        self.ordeal.cancel(seed)

    @rule(seed=seeds)
    def fail(self, seed: int) -> None:
        self.ordeal.fail(seed)

    @rule(seed=seeds)
    def cancel_during_a_step(self, seed: int) -> None:
        self.ordeal.cancel_during_a_step(seed)

    @rule(seed=seeds)
    def wait(self, seed: int) -> None:
        self.ordeal.wait(seed)

    @rule(seed=seeds)
    def replace_adapter(self, seed: int) -> None:
        self.ordeal.replace_adapter(seed)

    @rule(seed=seeds)
    def copy(self, seed: int) -> None:
        self.ordeal.copy(seed)

    @rule()
    def load(self) -> None:
        self.ordeal.load()

    @rule(num_steps=st.integers(1, 5))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.ordeal.step()

    @rule(seed=seeds)
    def fly(self, seed: int) -> None:
        self.ordeal.fly(seed)

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "ordeal"):
            self.ordeal.check()

    def teardown(self) -> None:
        if hasattr(self, "ordeal"):
            self.ordeal.finish()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_long_random_walks() -> None:
    """Hypothesis rarely gets far enough to fill a pool, so these do; they must have seen all there is to see."""
    sequences: list[Sequence] = []
    pools: list[AdapterPool] = []
    offloads: list[OffloadStats] = []
    num_ahead = num_in_vain = 0
    for seed in range(600):
        random, ordeal = Random(seed), Ordeal(seed)
        deeds = [ordeal.step] * 24 + [ordeal.arrive] * 8 + [ordeal.load] * 12 + [ordeal.copy] * 4
        deeds += [ordeal.replace_adapter, ordeal.cancel, ordeal.fail, ordeal.cancel_during_a_step, ordeal.wait]
        deeds += [ordeal.fly] * 4
        for _ in range(60):
            random.choice(deeds)(random.randrange(2**32))
            ordeal.check()
        ordeal.finish()
        num_ahead += ordeal.num_ahead
        num_in_vain += ordeal.world.num_in_vain
        sequences += ordeal.world.sequences.values()
        assert ordeal.world.adapters is not None
        pools.append(ordeal.world.adapters)
        offloads += [] if ordeal.world.kv.offload is None else [ordeal.world.kv.offload.stats()]
    assert num_ahead > 1000
    assert num_in_vain > 100
    assert sum(sequence.num_preemptions > 0 for sequence in sequences) > 100
    assert sum(sequence.num_cached_tokens > 0 for sequence in sequences if sequence.index == 0) > 100
    assert sum(sequence.num_reused_blocks > 0 for sequence in sequences if sequence.index > 0) > 100
    assert sum(sequence.num_accepted_draft_tokens > 0 for sequence in sequences) > 100
    assert sum(stats.host.num_hits for stats in offloads) > 30
    assert sum(pool.cache.num_loads for pool in pools) > 500
    assert sum(pool.cache.num_evictions for pool in pools) > 100
    assert sum(pool.cache.num_failures for pool in pools) > 100
    assert sum(pool.slots.num_evictions for pool in pools) > 100


@pytest.mark.parametrize("ageing_seconds", [0.5, 2.0])
def test_nobody_starves_under_a_steady_stream_of_more_urgent_requests(ageing_seconds: float) -> None:
    world = World(num_blocks=6, block_size=2, max_batch_size=2, ageing_seconds=ageing_seconds)
    world.add("low", prompt=5, max_tokens=4, priority=-2)
    for turn in range(200):
        world.now = float(turn)
        world.add(f"high {turn}", prompt=(turn, turn), max_tokens=1, priority=2)
        world.step()
        if world.deltas["low", 0] and world.last("low").finish_reason:
            break
    assert turn <= 4 * ageing_seconds + 4 + 10
