"""What the device has no room for comes back as it was, whatever happens meanwhile; and nobody waits for ever."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.checking_runner import alone
from support.memory_adapters import make_adapter
from support.scheduling import World, make_request, shares
from trierarch.python_backend.kv.copies import Recalled, Tier
from trierarch.python_backend.kv.integrity import IntegrityError
from trierarch.python_backend.kv.offload_stats import OffloadStats, TierStats
from trierarch.python_backend.kv.payoff import MeasuredPayoff
from trierarch.python_backend.request import FinishReason, Request

seeds = st.integers(0, 2**32)
VOCAB_SIZE = 3
PROMPTS = tuple(tuple(1 + (index * number) % 7 for index in range(9)) for number in range(1, 5))
"""Few, so that they are asked for again."""


def stats_of(world: World) -> OffloadStats:
    assert world.kv.offload is not None
    return world.kv.offload.stats()


def disk_of(world: World) -> TierStats:
    disk = stats_of(world).disk
    assert disk is not None
    return disk


class Siege:
    """More prompts than the device has room for, asked for over and over, with copies that come late or fail."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        self.world = World(
            num_blocks=random.randint(6, 10),
            block_size=random.randint(1, 2) + 1,
            vocab_size=VOCAB_SIZE,
            max_batch_size=random.randint(1, 4),
            max_num_tokens=random.randint(3, 12),
            max_queue_size=1000,
            enable_chunked_prefill=random.random() < 0.7,
            guesses=random.choice(((), (True, False))),
            tiers=random.choice(((3, 0), (8, 0), (2, 4), (4, 12), (1, 20))),
        )
        self.requests: dict[str, Request] = {}
        self.cancelled: set[str] = set()

    def arrive(self, seed: int) -> None:
        random = Random(seed)
        request = make_request(
            str(len(self.requests)),
            prompt=random.choice(PROMPTS)[: random.randint(5, 9)],
            max_tokens=random.randint(1, 4),
            n=random.choice((1, 1, 1, 2)),
            cache_salt=random.choice(("", "", "s")),
            arrival_time=self.world.now,
        )
        self.world.scheduler.add(request)
        self.requests[request.request_id] = request

    def cancel(self, seed: int) -> None:
        if self.requests:
            name = Random(seed).choice(sorted(self.requests))
            self.cancelled.add(name)
            self.world.scheduler.abort(name)

    def copy(self, seed: int) -> None:
        assert self.world.mover is not None
        self.world.mover.finish_one(Random(seed))

    def step(self, seed: int = 0) -> None:
        self.world.step()

    def check(self) -> None:
        """The books agree, and say what the tiers hold: a key's content is that of the tokens which the key is of."""
        self.world.collect()
        self.world.scheduler.check_integrity()
        stats, mover = stats_of(self.world), self.world.mover
        assert mover is not None
        for tier in (stats.host, stats.disk):
            assert tier is None or tier.num_blocks <= tier.max_blocks
        if stats.disk is not None:
            assert len(mover.disk) <= stats.disk.max_blocks + len(mover.savings)

    def finish(self) -> None:
        mover = self.world.mover
        assert mover is not None
        self.world.run()
        mover.finish()
        self.check()
        assert self.world.kv.num_free_blocks == self.world.kv.num_blocks
        assert stats_of(self.world).disk is None or len(mover.disk) == disk_of(self.world).num_blocks
        for name, request in self.requests.items():
            for index in range(request.sampling.n):
                tokens, reason = alone(request, index, VOCAB_SIZE, ())
                if self.world.last(name, index).finish_reason is FinishReason.CANCELLED:
                    assert name in self.cancelled
                else:
                    assert (self.world.output(name, index), reason) == (tokens, FinishReason.LENGTH)


class OffloadMachine(RuleBasedStateMachine):
    @initialize(seed=seeds, arrivals=st.lists(seeds, min_size=1, max_size=5))
    def build(self, seed: int, arrivals: list[int]) -> None:
        self.siege = Siege(seed)
        for arrival in arrivals:
            self.siege.arrive(arrival)

    @rule(seed=seeds)
    def arrive(self, seed: int) -> None:
        self.siege.arrive(seed)

    @rule(seed=seeds)
    def cancel(self, seed: int) -> None:
        self.siege.cancel(seed)

    @rule(seed=seeds)
    def copy(self, seed: int) -> None:
        self.siege.copy(seed)

    @rule(num_steps=st.integers(1, 8))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.siege.step()

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "siege"):
            self.siege.check()

    def teardown(self) -> None:
        if hasattr(self, "siege"):
            self.siege.finish()


TestOffload = OffloadMachine.TestCase
TestOffload.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_long_sieges() -> None:
    sieges = []
    for seed in range(200):
        random, siege = Random(seed), Siege(seed)
        deeds = [siege.step] * 12 + [siege.arrive] * 3 + [siege.copy] * 6 + [siege.cancel]
        for _ in range(100):
            random.choice(deeds)(random.randrange(2**32))
            siege.check()
        siege.finish()
        sieges.append(siege)
    stats = [stats_of(siege.world) for siege in sieges]
    disks = [its.disk for its in stats if its.disk is not None]
    assert sum(its.host.num_hits for its in stats) > 150
    assert sum(disk.num_hits for disk in disks) > 40
    assert sum(its.host.num_failures for its in stats) > 25
    assert sum(disk.num_failures for disk in disks) > 100
    assert sum(its.host.num_evictions for its in stats) > 2000
    assert sum(disk.num_evictions for disk in disks) > 60
    assert sum(s.num_preemptions > 0 for siege in sieges for s in siege.world.sequences.values()) > 50


def evicting_world(tiers: tuple[int, int] = (8, 0), **config: Any) -> World:
    """A device of 6 blocks of 2 tokens on which `a` was answered and then pushed out by `b`."""
    world = World(num_blocks=6, block_size=2, tiers=tiers, **config)
    world.add("a", A, max_tokens=2)
    world.run()
    world.add("b", B, max_tokens=2)
    world.run()
    return world


A, B = tuple(range(1, 10)), tuple(range(20, 29))


def test_an_evicted_prefix_comes_back_instead_of_being_computed() -> None:
    world = evicting_world()
    num_computed = world.runner.num_computed
    world.add("again", A, max_tokens=2)
    assert world.step().scheduled == (), "it waits"
    assert world.mover is not None
    assert world.mover.is_recalling
    world.run()
    assert world.output("again") == world.output("a")
    assert world.usage("again").num_cached_tokens == 8
    assert world.runner.num_computed - num_computed == 2, "the last token of the prompt, and the first drawn"
    assert stats_of(world).host.num_hits == 3, "one was still on the device"


def test_others_go_on_while_one_waits() -> None:
    world = evicting_world()
    world.add("again", A, max_tokens=1)
    world.add("other", (50, 51), max_tokens=1)
    assert shares(world.step()) == [("other", 0, 2)]
    assert world.step().scheduled == ()
    world.run()
    assert world.output("again") == world.output("a")[:1]


def test_who_wants_the_same_waits_for_the_same_copy() -> None:
    world = evicting_world()
    world.add("one", A, max_tokens=1)
    world.add("two", A, max_tokens=1)
    world.step()
    assert world.mover is not None
    assert len(world.mover.recalls) == 1
    world.run()
    assert world.output("one") == world.output("two") == world.output("a")[:1]
    assert stats_of(world).num_recalls == 1


def test_a_copy_that_fails_is_computed_again_and_not_looked_for_again() -> None:
    world = evicting_world()
    world.add("again", A, max_tokens=2)
    world.step()
    assert world.mover is not None
    recall = world.mover.recalls.popleft()
    world.kv.recalled(Recalled(recall.number, frozenset(arrival.key for arrival in recall.arrivals)))
    world.run()
    assert world.output("again") == world.output("a")
    assert world.usage("again").num_cached_tokens < 8
    assert stats_of(world).host.num_failures == len(recall.arrivals)


def test_who_is_aborted_while_its_blocks_come_back_leaves_nothing_behind() -> None:
    world = evicting_world()
    world.add("again", A)
    world.step()
    world.scheduler.abort("again")
    assert world.kv.num_free_blocks < world.kv.num_blocks, "they are still being filled"
    world.run()
    assert world.mover is not None
    world.mover.finish()
    world.scheduler.check_integrity()
    assert world.kv.num_free_blocks == world.kv.num_blocks
    world.add("once more", A, max_tokens=1)
    assert world.step().scheduled[0].start == 8, "they came all the same"


def test_a_preempted_sequence_goes_on_where_it_was() -> None:
    """Two that outgrow the device by turns: without tiers what was evicted is computed again."""
    computed = {}
    for tiers in ((0, 0), (16, 0), (1, 16)):
        world = World(num_blocks=6, block_size=2, tiers=tiers)
        for name, prompt in (("a", A[:4]), ("b", B[:4])):
            world.add(name, prompt, max_tokens=8)
        world.run()
        assert world.usage("b").num_preemptions > 0
        for name, prompt in (("a", A[:4]), ("b", B[:4])):
            assert world.output(name) == alone(make_request(name, prompt, max_tokens=8), 0, 1000, ())[0]
        computed[tiers] = world.runner.num_computed
    assert computed[16, 0] < computed[0, 0]
    assert computed[1, 16] < computed[0, 0]


@pytest.mark.parametrize("other", [{"cache_salt": "s"}, {"adapter": make_adapter("x")}])
def test_another_salt_or_adapter_finds_nothing(other: dict[str, Any]) -> None:
    world = evicting_world(max_adapters=1)
    world.add("again", A, max_tokens=1, **other)
    world.run()
    assert world.usage("again").num_cached_tokens == 0
    assert stats_of(world).num_recalls == 0


def test_who_is_told_its_prompt_computes_it() -> None:
    world = evicting_world()
    world.add("again", A, max_tokens=1, prompt_logprobs=0)
    world.run()
    assert stats_of(world).num_recalls == 0


def test_what_is_about_to_give_way_is_on_disk_before() -> None:
    world = World(num_blocks=6, block_size=2, tiers=(2, 8))
    for number in range(6):
        world.add(str(number), tuple(range(10 * number, 10 * number + 9)), max_tokens=1)
        world.run()
    assert world.mover is not None
    world.mover.finish()
    stored = disk_of(world).num_stored
    assert stored > 2
    assert disk_of(world).num_blocks == len(world.mover.disk) == min(stored, 8)
    world.scheduler.check_integrity()


def test_copying_pays_until_it_is_measured_to_be_slower_than_computing() -> None:
    payoff = MeasuredPayoff(block_size=16)
    assert payoff.pays(Tier.HOST)
    payoff.observe_step(num_tokens=15, seconds=100.0)
    payoff.observe_copies(Tier.HOST, num_blocks=4, seconds=4.0)
    assert payoff.pays(Tier.HOST), "no step was large enough to count"
    payoff.observe_step(num_tokens=32, seconds=1.0)
    assert payoff.is_slow(Tier.HOST)
    assert not payoff.is_slow(Tier.DISK)
    assert [payoff.pays(Tier.HOST) for _ in range(64)] == [False] * 63 + [True], "one in 64 measures it anew"
    for _ in range(20):
        payoff.observe_copies(Tier.HOST, num_blocks=4, seconds=0.1)
    assert payoff.pays(Tier.HOST)


def test_what_does_not_pay_is_neither_kept_nor_brought_back() -> None:
    world = evicting_world()
    assert world.kv.offload is not None
    payoff = MeasuredPayoff(block_size=2)
    payoff.observe_step(2, 1.0)
    payoff.observe_copies(Tier.HOST, 1, 2.0)
    world.kv.offload.payoff = payoff
    stored = stats_of(world).host.num_stored
    world.add("again", A, max_tokens=2)
    world.run()
    assert world.output("again") == world.output("a")
    assert stats_of(world).num_recalls == 0
    assert stats_of(world).host.num_stored == stored


def test_integrity_notices_a_copy_that_nobody_knows_of() -> None:
    world = evicting_world()
    world.add("again", A)
    world.step()
    assert world.kv.offload is not None
    assert world.mover is not None
    world.kv.offload.recalled(Recalled(world.mover.recalls.popleft().number))
    with pytest.raises(IntegrityError, match="blocks come back that nobody waits for, or do not"):
        world.kv.check_integrity([])
