from __future__ import annotations

from support.drafting import draft, make_sequence
from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.speculation.drafter import NO_DRAFT, Ask
from trierarch.python_backend.speculation.live_text import GUESSED_PER_MATCHED
from trierarch.python_backend.speculation.prompt_lookup import PromptLookupDrafter


def test_goes_on_as_after_the_latest_occurrence() -> None:
    sequence = make_sequence(0, [1, 2, 3, 4, 5, 1, 2, 6, 7, 8], [1, 2])
    assert draft(PromptLookupDrafter(), sequence, 3).token_ids == (6, 7, 8)


def test_a_longer_match_beats_a_later_one() -> None:
    sequence = make_sequence(0, [9, 1, 2, 3, 4, 5, 1, 2, 6, 7], [9, 1, 2])
    assert draft(PromptLookupDrafter(), sequence, 2).token_ids == (3, 4)


def test_a_draft_is_as_long_as_its_match_allows() -> None:
    text = list(range(100))
    for length in (1, 3):
        sequence = make_sequence(length, [*text, 200], text[10 - length : 10])
        assert draft(PromptLookupDrafter(), sequence, 50).token_ids == tuple(
            range(10, 10 + GUESSED_PER_MATCHED * length)
        )
        assert len(draft(PromptLookupDrafter(), sequence, 2).token_ids) == 2


def test_a_longer_match_is_firmer_ground() -> None:
    text = list(range(100))
    firmness = [
        draft(PromptLookupDrafter(), make_sequence(0, [*text, 200], text[50 - length : 50])).evidence
        for length in (1, 2, 3, 5, 9, 33)
    ]
    assert firmness == sorted(set(firmness))


def test_where_nothing_repeats_nothing_is_guessed() -> None:
    drafter = PromptLookupDrafter()
    for tokens in ([1], [1, 2, 3], [3, 2, 1, 4]):
        assert draft(drafter, make_sequence(tokens[-1] + 10 * len(tokens), tokens)) == NO_DRAFT


def test_a_loop_is_gone_round() -> None:
    assert draft(PromptLookupDrafter(), make_sequence(0, [1, 2, 3] * 6)).token_ids == (1, 2, 3, 1, 2, 3, 1, 2)
    assert draft(PromptLookupDrafter(), make_sequence(1, [1, 2, 3, 4, 5, 1, 2])).token_ids == (3, 4, 5, 1, 2)


def test_no_sequence_is_looked_up_in_another() -> None:
    drafter = PromptLookupDrafter()
    one, other = make_sequence(0, [1, 2, 3, 1, 2]), make_sequence(1, [1, 2, 4, 1, 2])
    assert [each.token_ids[0] for each in drafter.propose([Ask(one, 1), Ask(other, 1)])] == [3, 4]
    assert draft(drafter, make_sequence(2, [9, 1, 2])) == NO_DRAFT


def test_forgetting_and_closing_may_be_done_at_any_time() -> None:
    drafter = PromptLookupDrafter()
    assert drafter.kind is DrafterKind.PROMPT_LOOKUP
    drafter.forget([7, 7])
    sequence = make_sequence(0, [1, 2, 3, 1, 2])
    before = draft(drafter, sequence)
    drafter.forget([0])
    assert draft(drafter, sequence) == before
    drafter.close()
    drafter.close()
