"""Whom the speculator asks, how far it follows, and what it learns; and that no answer depends on any of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.checking_runner import alone, next_token
from support.drafters import ScriptedDrafter
from support.ordeal import Ordeal
from support.scheduling import World, make_request
from trierarch.builder.manifest import DrafterKind, Speculation
from trierarch.python_backend.request import SpeculationParams
from trierarch.python_backend.speculation.allotment import FixedLength
from trierarch.python_backend.speculation.drafter import NO_DRAFT, Ask, Draft
from trierarch.python_backend.speculation.prompt_lookup import PromptLookupDrafter
from trierarch.python_backend.speculation.speculator import Speculator
from trierarch.python_backend.speculation.stretches import Stretches
from trierarch.python_backend.speculation.suffix import SuffixDrafter

VOCAB_SIZE = 1000
SPECULATION = Speculation(drafters=(DrafterKind.SUFFIX, DrafterKind.PROMPT_LOOKUP), max_draft_tokens=4)


def right(ask: Ask) -> Draft:
    """What the model will say, as far as asked."""
    known = list(ask.sequence.token_ids)
    for _ in range(ask.max_tokens):
        known.append(next_token(known, ask.sequence.index, VOCAB_SIZE))
    return Draft(tuple(known[len(ask.sequence.token_ids) :]))


def wrong(ask: Ask) -> Draft:
    """Never what the model will say."""
    return Draft(tuple((token + 1) % VOCAB_SIZE for token in right(ask).token_ids))


def failing(ask: Ask) -> Draft:
    raise ZeroDivisionError("on purpose")


def make_world(speculator: Speculator, **settings: int) -> World:
    return World(num_blocks=200, block_size=4, speculator=speculator, max_seq_len=400, **settings)


def expected(name: str, prompt: int, max_tokens: int) -> list[int]:
    return alone(make_request(name, prompt, max_tokens=max_tokens), 0, VOCAB_SIZE, ())[0]


def test_a_drafter_that_is_always_right_saves_four_steps_of_five() -> None:
    world = make_world(Speculator(SPECULATION, VOCAB_SIZE, [ScriptedDrafter(right)]))
    world.add("a", prompt=5, max_tokens=51)
    num_steps = world.run()
    assert world.output("a") == expected("a", 5, 51)
    assert num_steps < 51 / 3
    assert world.usage("a").num_draft_tokens == world.usage("a").num_accepted_draft_tokens


@pytest.mark.parametrize("guess", [wrong, failing])
def test_a_drafter_that_is_always_wrong_or_raises_is_soon_not_followed(
    guess: Callable[[Ask], Draft], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    speculator = Speculator(SPECULATION, VOCAB_SIZE, [ScriptedDrafter(guess)])
    world = make_world(speculator)
    world.add("a", prompt=5, max_tokens=80)
    num_steps = world.run()
    assert world.output("a") == expected("a", 5, 80)
    assert num_steps == 81
    assert world.usage("a").num_draft_tokens < 40


def test_what_is_not_verified_is_learnt_from_all_the_same() -> None:
    """A drafter that was wrong for long becomes right: it is followed again without ever being tried blindly."""
    turns = {"right": False}
    drafter = ScriptedDrafter(lambda ask: right(ask) if turns["right"] else wrong(ask))
    world = make_world(Speculator(SPECULATION, VOCAB_SIZE, [drafter]))
    world.add("a", prompt=5, max_tokens=300)
    for _ in range(60):
        world.step()
    before = sum(len(item.draft_token_ids) for plan in world.plans[-20:] for item in plan.scheduled)
    assert before == 0
    turns["right"] = True
    for _ in range(25):
        world.step()
    assert any(len(item.draft_token_ids) == 4 for item in world.plans[-1].scheduled)


def test_the_likelier_of_two_guesses_is_verified() -> None:
    bad = ScriptedDrafter(wrong, DrafterKind.PROMPT_LOOKUP)
    speculator = Speculator(SPECULATION, VOCAB_SIZE, [bad, ScriptedDrafter(right)])
    world = make_world(speculator)
    world.add("a", prompt=5, max_tokens=60)
    world.run()
    by_kind = {drafter.kind: drafter for drafter in speculator.stats().drafters}
    good = by_kind[DrafterKind.SUFFIX]
    assert good.num_accepted_tokens == good.num_draft_tokens > 30
    assert DrafterKind.PROMPT_LOOKUP not in by_kind or by_kind[DrafterKind.PROMPT_LOOKUP].num_draft_tokens < 12


def test_a_model_is_asked_where_it_pays_and_only_probed_where_it_does_not() -> None:
    def steps_with(cost: float) -> tuple[int, int]:
        model = ScriptedDrafter(right, DrafterKind.DRAFT_MODEL, cost)
        world = make_world(Speculator(SPECULATION, VOCAB_SIZE, models=[model]))
        world.add("a", prompt=5, max_tokens=120)
        num_steps = world.run()
        assert world.output("a") == expected("a", 5, 120)
        return num_steps, len(model.asked)

    cheap, dear = steps_with(cost=0.0001), steps_with(cost=1.0)
    assert cheap[0] < 50
    assert dear[0] > 100
    assert dear[1] < 10


def test_a_model_that_is_tried_on_a_long_text_is_asked_until_it_knows_it() -> None:
    model = ScriptedDrafter(lambda ask: right(ask) if len(model.asked) >= 8 else NO_DRAFT, DrafterKind.DRAFT_MODEL, 1.0)
    world = make_world(Speculator(SPECULATION, VOCAB_SIZE, models=[model]))
    world.add("a", prompt=5, max_tokens=20)
    world.run()
    assert world.output("a") == expected("a", 5, 20)
    assert len(model.asked) == 8, "it does not pay"


def test_a_model_is_not_asked_about_whom_it_does_not_know() -> None:
    """Nor is that a try in vain: it is asked as soon as it does."""
    model = ScriptedDrafter(right, DrafterKind.EAGLE3, 0.001)
    model.unknown = {0}
    world = make_world(Speculator(SPECULATION, VOCAB_SIZE, models=[model]))
    world.add("a", prompt=5, max_tokens=20)
    world.step()
    world.step()
    assert not model.asked
    model.unknown.clear()
    world.step()
    assert len(model.asked) == 1
    world.run()
    assert world.output("a") == expected("a", 5, 20)


@pytest.mark.parametrize(
    ("params", "num_asked"),
    [
        (SpeculationParams(), True),
        (SpeculationParams(max_draft_tokens=0), False),
        (SpeculationParams(drafters=(DrafterKind.PROMPT_LOOKUP,)), False),
        (SpeculationParams(drafters=(DrafterKind.SUFFIX,)), True),
    ],
)
def test_a_request_narrows_who_is_asked(params: SpeculationParams, num_asked: bool) -> None:
    drafter = ScriptedDrafter(right)
    world = make_world(Speculator(SPECULATION, VOCAB_SIZE, [drafter], allotment=FixedLength(4)))
    world.add("a", prompt=5, max_tokens=9, speculation=params)
    world.run()
    assert bool(drafter.asked) == num_asked
    assert world.output("a") == expected("a", 5, 9)


def test_no_more_is_asked_for_than_request_and_engine_allow() -> None:
    asked: list[tuple[int, int, int]] = []

    def guess(ask: Ask) -> Draft:
        sampling = ask.sequence.request.sampling
        asked.append((sampling.max_tokens, ask.max_tokens, ask.sequence.num_output_tokens))
        return right(ask)

    world = make_world(Speculator(SPECULATION, VOCAB_SIZE, [ScriptedDrafter(guess)]))
    world.add("a", prompt=5, max_tokens=7, speculation=SpeculationParams(max_draft_tokens=3))
    world.add("b", prompt=5, max_tokens=100, speculation=SpeculationParams(max_draft_tokens=100))
    world.step()
    assert asked == [(7, 3, 0), (100, 4, 0)]
    world.run()
    assert all(1 <= wanted <= max_tokens - num_output_tokens - 1 for max_tokens, wanted, num_output_tokens in asked)


def test_the_callers_own_draft_is_verified_without_any_drafter() -> None:
    answer = expected("a", 5, 12)
    for draft in (tuple(answer[:3]), (*answer[:2], 999)):
        world = make_world(Speculator(None, VOCAB_SIZE, allotment=FixedLength(16)))
        world.add("a", prompt=5, max_tokens=12, speculation=SpeculationParams(draft_token_ids=draft))
        world.step()
        num_right = 3 if draft[2] == answer[2] else 2
        assert world.output("a") == answer[: num_right + 1]
        world.run()
        assert world.output("a") == answer
        assert world.usage("a").num_accepted_draft_tokens == num_right


def test_nobody_else_is_asked_while_the_callers_own_draft_holds() -> None:
    answer, drafter = expected("a", 5, 12), ScriptedDrafter(right)
    world = make_world(Speculator(SPECULATION, VOCAB_SIZE, [drafter], allotment=FixedLength(4)))
    world.add("a", prompt=5, max_tokens=12, speculation=SpeculationParams(draft_token_ids=tuple(answer[:8])))
    world.run()
    assert world.output("a") == answer
    assert len(drafter.asked) == 1, "two steps of the caller's own, then one of the drafter's"


def test_what_a_drafter_says_is_not_trusted() -> None:
    nonsense = ScriptedDrafter(lambda ask: Draft((*right(ask).token_ids[:1], -1, VOCAB_SIZE, *range(50)), evidence=99))
    world = make_world(Speculator(SPECULATION, VOCAB_SIZE, [nonsense], allotment=FixedLength(50)))
    world.add("a", prompt=5, max_tokens=9)
    world.run()
    assert world.output("a") == expected("a", 5, 9)
    assert {len(item.draft_token_ids) for plan in world.plans for item in plan.scheduled} == {0, 1}


def test_drafters_hear_who_has_gone_and_are_closed() -> None:
    drafter = ScriptedDrafter(right)
    speculator = Speculator(SPECULATION, VOCAB_SIZE, [drafter])
    world = make_world(speculator)
    world.add("a", prompt=5, max_tokens=4)
    world.run()
    assert drafter.forgotten == [world.sequences["a", 0].sequence_id]
    speculator.close()
    assert drafter.is_closed


def test_figures_add_up() -> None:
    speculator = Speculator(SPECULATION, VOCAB_SIZE, [ScriptedDrafter(right)])
    world = make_world(speculator)
    world.add("a", prompt=5, max_tokens=40)
    world.add("b", prompt=6, max_tokens=40)
    num_steps = world.run()
    stats, usages = speculator.stats(), (world.usage("a"), world.usage("b"))
    assert stats.num_steps == num_steps - 1, "the last one only tells the runner who has ended"
    assert 0 < stats.num_steps_speculated <= num_steps
    assert sum(stats.drafted_by_position) == sum(usage.num_draft_tokens for usage in usages)
    assert sum(stats.accepted_by_position) == sum(usage.num_accepted_draft_tokens for usage in usages)
    assert sum(length * count for length, count in enumerate(stats.drafts_by_length)) == sum(stats.drafted_by_position)
    assert sum(drafter.num_draft_tokens for drafter in stats.drafters) == sum(stats.drafted_by_position)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), length=st.sampled_from([None, None, 1, 4]))
def test_whatever_happens_answers_do_not_depend_on_text_drafters(seed: int, length: int | None) -> None:
    """Arrivals, cancels, failures, preemption, chunks, prefix hits, siblings, stop words, tenants."""
    random, ordeal = Random(seed), Ordeal(seed)
    drafters = [SuffixDrafter(history_bytes=random.choice((0, 4000))), PromptLookupDrafter()]
    allotment = None if length is None else FixedLength(length)
    ordeal.world.speculator = Speculator(SPECULATION, ordeal.world.runner.vocab_size, drafters, allotment=allotment)
    deeds = [ordeal.step] * 12 + [ordeal.arrive] * 6 + [ordeal.cancel, ordeal.fail, ordeal.cancel_during_a_step]
    for _ in range(40):
        random.choice(deeds)(random.randrange(2**32))
        ordeal.check()
    ordeal.finish()


@pytest.mark.parametrize(
    ("drafters", "params", "expected"),
    [
        ([], SpeculationParams(), False),
        ([], SpeculationParams(draft_token_ids=(1,)), True),
        ([ScriptedDrafter(right)], SpeculationParams(), True),
        ([ScriptedDrafter(right)], SpeculationParams(max_draft_tokens=0), False),
        ([ScriptedDrafter(right)], SpeculationParams(drafters=(DrafterKind.PROMPT_LOOKUP,)), False),
    ],
)
def test_for_whom_nobody_will_guess_is_known_from_the_request(
    drafters: list[ScriptedDrafter], params: SpeculationParams, expected: bool
) -> None:
    speculator = Speculator(SPECULATION, VOCAB_SIZE, drafters)
    request = make_request("a", prompt=5, max_tokens=20, speculation=params)
    assert speculator.guesses_for(request) is expected
    world = make_world(speculator)
    world.scheduler.add(request)
    world.run()
    assert (world.usage("a").num_draft_tokens > 0) <= expected


def test_nobody_guesses_while_steps_are_to_be_launched() -> None:
    stretches = Stretches()
    speculator = Speculator(SPECULATION, VOCAB_SIZE, [ScriptedDrafter(right)], stretches=stretches)
    request = make_request("a", prompt=5, max_tokens=20)
    assert speculator.guesses_for(request)
    stretches.is_launching = True
    assert not speculator.guesses_for(request)
    own = make_request("b", prompt=5, max_tokens=20, speculation=SpeculationParams(draft_token_ids=(1,)))
    assert speculator.guesses_for(own), "its own draft is verified all the same"


def test_steps_that_are_passed_over_teach_nothing_but_counts() -> None:
    speculator = Speculator(SPECULATION, VOCAB_SIZE, [ScriptedDrafter(right)])
    world = make_world(speculator)
    world.add("a", prompt=5, max_tokens=20)
    for _ in range(3):
        plan = world.scheduler.schedule()
        speculator.pass_over(plan)
        output = world.runner.run(plan)
        speculator.observe(plan, output, 0.01, was_passed_over=True)
        world.scheduler.update(plan, output)
    stats = speculator.stats()
    assert (stats.num_steps, stats.num_steps_speculated, stats.drafts_by_length[0]) == (3, 0, 3)
    assert speculator._cost.seconds(1, 1) == 0.0
