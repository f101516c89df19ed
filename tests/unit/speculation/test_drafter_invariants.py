"""Whatever happens in whatever order: drafts are real continuations, within bounds, of the tenant's own words."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.drafting import draft, finish, make_sequence
from trierarch.python_backend.request import FinishReason
from trierarch.python_backend.sequence import Sequence
from trierarch.python_backend.speculation.drafter import MAX_EVIDENCE, NO_DRAFT, Ask, Draft, Drafter
from trierarch.python_backend.speculation.live_text import GRAMS
from trierarch.python_backend.speculation.prompt_lookup import PromptLookupDrafter
from trierarch.python_backend.speculation.suffix import SuffixDrafter

SMALL, LARGE = 15_000, 1 << 20
"""Bytes of history: one is soon full, the other never is."""
SALTS = ("us", "them")
make_drafter = st.sampled_from([PromptLookupDrafter, lambda: SuffixDrafter(SMALL), lambda: SuffixDrafter(LARGE)])


class Tale:
    """Drives a drafter at random; every draft is held against all that its tenant ever said."""

    def __init__(self, drafter: Drafter, seed: int) -> None:
        self.drafter = drafter
        self.random = Random(seed)
        self.live: list[Sequence] = []
        self.said: dict[str, list[list[int]]] = {salt: [] for salt in SALTS}
        self.num_sequences = 0
        self.drafts: dict[str, list[Draft]] = {salt: [] for salt in SALTS}

    def _tokens(self, most: int, tenant: str) -> list[int]:
        # Tenants share their words but for one each, which shows who has listened to whom.
        return [self.random.choice([1, 2, 3, 10 + SALTS.index(tenant)]) for _ in range(self.random.randint(1, most))]

    def begin(self, salt: str) -> None:
        sequence = make_sequence(self.num_sequences, self._tokens(20, salt), cache_salt=salt)
        self.num_sequences += 1
        self.live.append(sequence)
        self.said[salt].append(sequence.token_ids)

    def step(self, salt: str) -> None:
        """Some of the tenant's sequences are asked about, all of them go on."""
        ours = [sequence for sequence in self.live if sequence.request.cache_salt == salt]
        asks = [Ask(sequence, self.random.randint(1, 12)) for sequence in ours if self.random.random() < 0.7]
        for ask, drafted in zip(asks, self.drafter.propose(asks), strict=True):
            self.drafts[salt].append(drafted)
            self._check(ask, drafted)
        for sequence in ours:
            sequence.token_ids += self._tokens(4, salt)

    def _check(self, ask: Ask, drafted: Draft) -> None:
        assert len(drafted.token_ids) <= ask.max_tokens
        assert 0 <= drafted.evidence <= MAX_EVIDENCE
        if drafted.token_ids:
            words = [*ask.sequence.token_ids[-GRAMS[-1] :], *drafted.token_ids]
            looped = [*ask.sequence.token_ids, *drafted.token_ids][:-1]
            assert any(
                text[start : start + len(words)] == words
                for text in (looped, *self.said[ask.sequence.request.cache_salt])
                for start in range(len(text))
            )
        else:
            assert drafted == NO_DRAFT

    def end(self, salt: str, reason: FinishReason | None) -> None:
        """One of the tenant's sequences ends, or is preempted where there is no reason."""
        ours = [sequence for sequence in self.live if sequence.request.cache_salt == salt]
        if not ours:
            return
        sequence = self.random.choice(ours)
        if reason is None:
            self.drafter.forget([sequence.sequence_id, 10**9])
        else:
            self.live.remove(sequence)
            finish(self.drafter, sequence, reason)

    def walk(self, num_deeds: int, salts: tuple[str, ...]) -> None:
        """Deeds are drawn one tenant after the other, from a chance of its own, so leaving one out changes no other."""
        chances = {salt: Random(f"{self.random.random()} {salt}") for salt in SALTS}
        for _ in range(num_deeds):
            for salt in salts:
                self.random = chances[salt]
                deed = self.random.randrange(8)
                if deed < 2:
                    self.end(salt, self.random.choice([None, *FinishReason]))
                elif deed < 4:
                    self.begin(salt)
                else:
                    self.step(salt)
                if isinstance(self.drafter, SuffixDrafter):
                    assert self.drafter.history.num_bytes <= LARGE


@given(make=make_drafter, seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_drafts_are_what_the_tenant_said_before(make: Callable[[], Drafter], seed: int) -> None:
    Tale(make(), seed).walk(40, SALTS)


def test_the_walks_see_drafts_from_history_and_histories_that_are_full() -> None:
    drafter = SuffixDrafter(SMALL)
    tale, forgetful = Tale(drafter, 0), Tale(SuffixDrafter(0), 0)
    tale.walk(200, SALTS)
    forgetful.walk(200, SALTS)
    pairs = zip(tale.drafts["us"], forgetful.drafts["us"], strict=True)
    assert sum(ours != others for ours, others in pairs) > 50
    assert 0 < len(drafter.history) < tale.num_sequences / 4
    assert drafter.history.num_bytes <= SMALL


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_what_others_do_changes_no_draft_while_there_is_room(seed: int) -> None:
    alone, together = Tale(SuffixDrafter(LARGE), seed), Tale(SuffixDrafter(LARGE), seed)
    alone.walk(40, SALTS[:1])
    together.walk(40, SALTS)
    assert alone.drafts["us"] == together.drafts["us"]


@given(make=make_drafter, text=st.lists(st.integers(0, 3), min_size=2, max_size=60), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_asked_seldom_preempted_or_asked_first_at_the_end_the_draft_is_the_same(
    make: Callable[[], Drafter], text: list[int], seed: int
) -> None:
    random = Random(seed)
    drafter = make()
    sequence = make_sequence(0, text[:1])
    while sequence.num_tokens < len(text):
        if random.random() < 0.6:
            draft(drafter, sequence)
        if random.random() < 0.2:
            drafter.forget([0])
        sequence.token_ids += text[sequence.num_tokens : sequence.num_tokens + random.randint(1, 5)]
    assert draft(drafter, sequence) == draft(make(), make_sequence(0, text[:1], text[1:]))


@pytest.mark.parametrize("make", [PromptLookupDrafter, lambda: SuffixDrafter(LARGE)])
def test_a_long_run_of_one_token_and_a_long_prompt_are_nothing_special(make: Callable[[], Drafter]) -> None:
    assert draft(make(), make_sequence(0, [7] * 5_000)).token_ids == (7,) * 8
    assert draft(make(), make_sequence(1, [*range(5_000), 0, 1])).token_ids[:2] == (2, 3)
