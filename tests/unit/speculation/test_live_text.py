"""Texts that several drafters read are kept once, and as long as anybody needs them."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from support.drafting import draft, finish, make_sequence
from trierarch.python_backend.sequence import Sequence
from trierarch.python_backend.speculation.drafter import Drafter
from trierarch.python_backend.speculation.live_text import LiveTexts
from trierarch.python_backend.speculation.prompt_lookup import PromptLookupDrafter
from trierarch.python_backend.speculation.suffix import SuffixDrafter

HISTORY_BYTES = 20_000


def drafters(texts: LiveTexts | None = None) -> list[Drafter]:
    return [SuffixDrafter(HISTORY_BYTES, texts), PromptLookupDrafter(texts)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_who_shares_texts_drafts_as_who_has_his_own(seed: int) -> None:
    random, texts = Random(seed), LiveTexts()
    sharing, alone = drafters(texts), drafters()
    live: list[Sequence] = []
    for sequence_id in range(60):
        if len(live) < 4:
            words = [random.randrange(5) for _ in range(random.randint(2, 30))]
            live.append(make_sequence(sequence_id, words, cache_salt=random.choice(("us", "them"))))
        sequence = random.choice(live)
        which = random.sample((0, 1), random.choice((1, 2)))  # a request may name its drafters
        for index in which:
            assert draft(sharing[index], sequence) == draft(alone[index], sequence)
        sequence.token_ids += [random.randrange(5) for _ in range(random.randint(1, 6))]
        if random.random() < 0.2:
            live.remove(sequence)
            for drafter in random.sample([*sharing, *alone], 4):
                finish(drafter, sequence)
    for sequence in live:
        for drafter in sharing:
            finish(drafter, sequence)
    assert len(texts) == 0


def test_a_text_stays_until_all_its_readers_forgot_it() -> None:
    texts = LiveTexts()
    suffix, lookup = drafters(texts)
    sequence = make_sequence(0, [1, 2, 3, 1, 2])
    assert draft(suffix, sequence).token_ids[:1] == draft(lookup, sequence).token_ids[:1] == (3,)
    assert len(texts) == 1
    lookup.forget([0])
    assert len(texts) == 1
    suffix.forget([0])
    assert (len(texts), len(texts.tenants)) == (0, 0)


def test_whoever_closes_first_leaves_nothing() -> None:
    texts = LiveTexts()
    suffix, lookup = drafters(texts)
    draft(lookup, make_sequence(0, [1, 2, 1]))
    suffix.close()
    lookup.close()
    assert (len(texts), len(texts.tenants)) == (0, 0)
