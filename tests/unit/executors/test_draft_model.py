"""A draft model follows sequences wherever they go, keeps its own blocks in order, and changes no answer."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.checking_runner import CheckingRunner, alone, next_token
from support.ordeal import Ordeal
from support.scheduling import World, make_request
from support.toy_mover import ToyCarrier, make_offload
from trierarch.builder.manifest import DrafterKind, Speculation
from trierarch.python_backend.executors.draft_model import DraftModel
from trierarch.python_backend.executors.offload.mover import Mover
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.sequence import Sequence
from trierarch.python_backend.speculation.allotment import FixedLength
from trierarch.python_backend.speculation.drafter import Ask
from trierarch.python_backend.speculation.speculator import Speculator

VOCAB_SIZE = 1000
SPECULATION = Speculation(drafters=(DrafterKind.DRAFT_MODEL,), max_draft_tokens=5)


class Rig:
    """A draft model and its blocks."""

    def __init__(
        self,
        num_blocks: int = 20,
        *,
        mistakes: int = 0,
        vocab_size: int = VOCAB_SIZE,
        max_num_tokens: int = 64,
        tiers: tuple[int, int] = (0, 0),
    ) -> None:
        """tiers: blocks that host memory and disk hold beyond its own."""
        self.kv = KVCacheManager(num_blocks, 2, offload=make_offload(*tiers))
        self.runner = CheckingRunner(2, vocab_size, mistakes=mistakes, runs_ahead=True, max_adapters=3)
        self.carrier = ToyCarrier(self.runner)
        mover = None if self.kv.offload is None else Mover(self.kv, self.carrier)
        self.model = DraftModel(self.runner, self.kv, (), max_num_tokens, mover)

    def propose(self, *asks: Ask) -> list[tuple[int, ...]]:
        drafts = [draft.token_ids for draft in self.model.propose(asks)]
        self.check()
        return drafts

    def check(self) -> None:
        """The blocks add up."""
        self.kv.check_integrity(follower.own for follower in self.model._followers.values())


def make_sequence(sequence_id: int, num_tokens: int = 5, max_tokens: int = 20) -> Sequence:
    request = make_request(str(sequence_id), num_tokens, max_tokens=max_tokens)
    return Sequence(sequence_id, request, 0, list(request.prompt_token_ids))


def continuation(sequence: Sequence, count: int) -> tuple[int, ...]:
    known = list(sequence.token_ids)
    for _ in range(count):
        known.append(next_token(known, sequence.index, VOCAB_SIZE))
    return tuple(known[len(sequence.token_ids) :])


def test_it_says_what_its_model_says() -> None:
    rig = Rig()
    long, short = make_sequence(1, 9), make_sequence(2, 1)
    assert rig.propose(Ask(long, 4), Ask(short, 1)) == [continuation(long, 4), continuation(short, 1)]


def test_a_long_text_is_caught_up_with_a_step_at_a_time_and_nobody_waits_for_that() -> None:
    rig = Rig(max_num_tokens=4)
    long, short = make_sequence(1, 18), make_sequence(2, 1)
    for num_left in (14, 11, 8, 5, 2):  # it grows meanwhile
        before = rig.runner.num_computed
        assert rig.propose(Ask(long, 1), Ask(short, 1)) == [(), continuation(short, 1)]
        assert rig.runner.num_computed - before == 4 + 1, (
            "a step's tokens of the long one, and the last of the short one"
        )
        assert rig.model._followers[1].num_missing == num_left
        long.token_ids += continuation(long, 1)
        short.token_ids += continuation(short, 1)
    assert rig.propose(Ask(long, 1), Ask(short, 1)) == [continuation(long, 1), continuation(short, 1)]


def test_all_that_keep_up_are_guessed_for_in_as_many_steps_as_it_takes() -> None:
    rig = Rig(max_num_tokens=2)
    sequences = [make_sequence(number, 2) for number in range(5)]
    asks = [Ask(sequence, 1) for sequence in sequences]
    assert rig.propose(*asks) == [continuation(sequence, 1) for sequence in sequences]


def test_what_its_cache_had_no_room_for_comes_back_beside_the_guesses_for_others() -> None:
    rig = Rig(num_blocks=8, tiers=(8, 0))
    first, second, other = make_sequence(1, 9), make_sequence(2, 12), make_sequence(3, 1)
    first.token_ids[0] = 77
    rig.propose(Ask(first, 1))
    first.token_ids += continuation(first, 1)
    rig.propose(Ask(first, 1))
    rig.model.forget([1])  # preempted, say
    rig.propose(Ask(second, 1))
    rig.model.forget([2])
    before = rig.runner.num_computed
    assert rig.propose(Ask(first, 2), Ask(other, 1)) == [(), continuation(other, 1)]
    assert rig.propose(Ask(first, 2), Ask(other, 1)) == [(), continuation(other, 1)], "it is still under way"
    assert rig.runner.num_computed - before == 2, "the other's token, twice"
    rig.carrier.finish()
    assert rig.propose(Ask(first, 2), Ask(other, 1)) == [continuation(first, 2), continuation(other, 1)]
    assert rig.runner.num_computed - before == 3 + 2 + 1, "what no full block had, and a guess"
    assert rig.kv.offload is not None
    assert rig.kv.offload.stats().host.num_hits > 0


def test_what_was_guessed_right_is_not_computed_again() -> None:
    rig, sequence = Rig(), make_sequence(1, 9)
    sequence.token_ids += rig.propose(Ask(sequence, 4))[0]
    sequence.token_ids += continuation(sequence, 1)
    before = rig.runner.num_computed
    assert rig.propose(Ask(sequence, 3)) == [continuation(sequence, 3)]
    assert rig.runner.num_computed - before == 2 + 2, (
        "the last guess, the bonus token, and two of the three new guesses"
    )


def test_what_was_guessed_wrong_is_taken_back() -> None:
    rig, sequence = Rig(), make_sequence(1, 9)
    (draft,) = rig.propose(Ask(sequence, 4))
    sequence.token_ids += [draft[0], draft[1] + 1]
    assert rig.propose(Ask(sequence, 3)) == [continuation(sequence, 3)]
    assert rig.kv.num_used_blocks == rig.kv.num_blocks_for(sequence.num_tokens + 2)


def test_an_end_token_ends_the_guess() -> None:
    sequence = make_sequence(1)
    ending = continuation(sequence, 2)
    rig = Rig()
    rig.model = DraftModel(rig.runner, rig.kv, (ending[1],), 64)
    assert rig.propose(Ask(sequence, 5)) == [ending]


def test_forgotten_sequences_leave_no_block_and_the_prefix_cache_finds_them() -> None:
    rig, first = Rig(), make_sequence(1, 9)
    rig.propose(Ask(first, 2))
    first.token_ids += continuation(first, 1)
    rig.propose(Ask(first, 2))
    rig.model.forget([1, 77])
    assert rig.kv.num_used_blocks == 0
    before = rig.runner.num_computed
    second = make_sequence(2, 9)
    assert rig.propose(Ask(second, 1)) == [continuation(second, 1)]
    assert rig.runner.num_computed - before == 1


def test_without_room_there_is_no_guess_and_the_idle_make_room() -> None:
    rig = Rig(num_blocks=6)
    first, second = make_sequence(1, 7), make_sequence(2, 7)
    assert rig.propose(Ask(first, 2), Ask(second, 2)) == [continuation(first, 2), ()]
    assert rig.propose(Ask(second, 2)) == [continuation(second, 2)]
    assert rig.propose(Ask(make_sequence(3, 20), 2)) == [()]
    assert rig.kv.num_used_blocks == 0


def test_time_is_foreseen_once_it_was_measured() -> None:
    rig, sequence = Rig(), make_sequence(1)
    assert rig.model.seconds([Ask(sequence, 4)], 4) == 0.0
    rig.propose(Ask(sequence, 4))
    assert 0.0 < rig.model.seconds([Ask(sequence, 4)], 1) < rig.model.seconds([Ask(sequence, 4)], 4)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(4, 12),
    mistakes=st.sampled_from([0, 1, 3]),
    max_num_tokens=st.integers(1, 9),
    tiers=st.sampled_from([(0, 0), (3, 0), (2, 6)]),
)
def test_whatever_happens_to_a_sequence_the_answers_stay(
    seed: int, num_blocks: int, mistakes: int, max_num_tokens: int, tiers: tuple[int, int]
) -> None:
    """Arrivals, cancels, failures, preemption, chunks, siblings; the ordeal itself compares every stream."""
    random, ordeal = Random(seed), Ordeal(seed)
    world = ordeal.world
    rig = Rig(
        num_blocks, mistakes=mistakes, vocab_size=world.runner.vocab_size, max_num_tokens=max_num_tokens, tiers=tiers
    )
    allotment = None if random.random() < 0.3 else FixedLength(3)
    world.speculator = Speculator(SPECULATION, world.runner.vocab_size, models=[rig.model], allotment=allotment)
    deeds = [ordeal.step] * 12 + [ordeal.arrive] * 6 + [ordeal.load] * 6
    deeds += [lambda seed: rig.carrier.finish_one(Random(seed))] * 4
    deeds += [ordeal.cancel, ordeal.fail, ordeal.cancel_during_a_step, ordeal.replace_adapter]
    for _ in range(40):
        random.choice(deeds)(random.randrange(2**32))
        ordeal.check()
        rig.check()
    ordeal.finish()
    world.speculator.propose(world.scheduler.schedule())
    world.speculator.close()
    assert rig.kv.num_used_blocks == 0


@pytest.mark.parametrize("mistakes", [0, 4])
def test_a_good_draft_saves_steps(mistakes: int) -> None:
    rig = Rig(mistakes=mistakes)
    speculator = Speculator(SPECULATION, VOCAB_SIZE, models=[rig.model], allotment=FixedLength(3))
    world = World(num_blocks=40, block_size=2, speculator=speculator)
    world.add("a", prompt=5, max_tokens=24)
    num_steps = world.run()
    assert world.output("a") == alone(make_request("a", 5, max_tokens=24), 0, VOCAB_SIZE, ())[0]
    num_steps -= 1  # the last one only tells the runner who has ended
    assert (num_steps == 6) if mistakes == 0 else (6 < num_steps < 20)
    (drafter,) = speculator.stats().drafters
    assert drafter.kind is DrafterKind.DRAFT_MODEL
    assert drafter.num_accepted_tokens == world.usage("a").num_accepted_draft_tokens
