from __future__ import annotations

from typing import Any

import pytest

from support.drafting import draft, finish, make_sequence
from support.memory_adapters import make_adapter
from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.request import FinishReason
from trierarch.python_backend.sequence import SequenceStatus
from trierarch.python_backend.speculation.drafter import NO_DRAFT
from trierarch.python_backend.speculation.live_text import GUESSED_PER_MATCHED
from trierarch.python_backend.speculation.suffix import SuffixDrafter

HISTORY_BYTES = 1 << 20
ANSWER = list(range(100, 140))


def tell(drafter: SuffixDrafter, sequence_id: int, answer: list[int], **fields: Any) -> None:
    """A sequence that answers `answer` to prompt 1, 2, 3, and ends."""
    sequence = make_sequence(sequence_id, [1, 2, 3], **fields)
    draft(drafter, sequence)
    sequence.token_ids += answer
    finish(drafter, sequence)


def test_what_mostly_followed_is_guessed_not_what_followed_last() -> None:
    sequence = make_sequence(0, [1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 4, 7], [1, 2])
    assert draft(SuffixDrafter(0), sequence, 1).token_ids == (3,)


def test_a_draft_is_as_long_as_its_match_allows() -> None:
    text = list(range(100))
    for length in (2, 5, 9):
        sequence = make_sequence(length, [*text, 200], text[10 - length : 10])
        assert draft(SuffixDrafter(0), sequence, 50).token_ids == tuple(range(10, 10 + GUESSED_PER_MATCHED * length))
        assert len(draft(SuffixDrafter(0), sequence, 3).token_ids) == 3


def test_a_draft_ends_where_it_gets_improbable() -> None:
    ways = [token for way in range(4) for token in (1, 2, 3, 10 + way)]
    assert draft(SuffixDrafter(0), make_sequence(0, [*ways, 9], [1, 2])).token_ids == (3,)


def test_an_earlier_answer_is_recalled_from_its_first_token_on() -> None:
    drafter = SuffixDrafter(HISTORY_BYTES)
    question = make_sequence(0, [1, 2, 3])
    assert draft(drafter, question) == NO_DRAFT
    drafter.forget([0])
    tell(drafter, 1, ANSWER)
    assert draft(drafter, make_sequence(2, [1, 2, 3]), 6).token_ids == tuple(ANSWER[:6])


def test_the_longer_match_wins_and_the_own_text_where_both_are_as_long() -> None:
    drafter = SuffixDrafter(HISTORY_BYTES)
    tell(drafter, 0, [5, 6, 7, 8, 50])
    assert draft(drafter, make_sequence(1, [9, 6, 7, 60, 9], [6, 7]), 1).token_ids == (60,)
    assert draft(drafter, make_sequence(2, [6, 7, 60, 5], [6, 7]), 1).token_ids == (8,)


@pytest.mark.parametrize("history_bytes", [0, 1000])
def test_without_room_there_is_no_history(history_bytes: int) -> None:
    drafter = SuffixDrafter(history_bytes)
    tell(drafter, 0, ANSWER)
    assert draft(drafter, make_sequence(1, ANSWER[:10])) == NO_DRAFT


@pytest.mark.parametrize("reason", list(FinishReason))
def test_only_what_came_to_an_end_of_its_own_is_remembered(reason: FinishReason) -> None:
    drafter = SuffixDrafter(HISTORY_BYTES)
    sequence = make_sequence(0, [1, 2, 3], ANSWER)
    draft(drafter, sequence)
    finish(drafter, sequence, reason)
    assert len(drafter.history) == (reason in (FinishReason.STOP, FinishReason.LENGTH))


def test_a_preempted_sequence_is_not_remembered_and_may_come_back() -> None:
    drafter = SuffixDrafter(HISTORY_BYTES)
    sequence = make_sequence(0, [1, 2, 3, 4, 1, 2], [3, 4])
    before = draft(drafter, sequence)
    assert before.token_ids[:4] == (1, 2, 3, 4)
    sequence.status = SequenceStatus.PREEMPTED
    drafter.forget([0])
    assert len(drafter.history) == 0
    sequence.status = SequenceStatus.RUNNING
    assert draft(drafter, sequence) == before
    sequence.token_ids += [5, 6]
    finish(drafter, sequence)
    assert draft(drafter, make_sequence(1, [3, 4, 5]), 1).token_ids == (6,)


@pytest.mark.parametrize("fields", [{"cache_salt": "them"}, {"adapter": make_adapter("them")}])
def test_two_tenants_with_equal_prompts_see_nothing_of_each_other(fields: dict[str, Any]) -> None:
    drafter = SuffixDrafter(HISTORY_BYTES)
    tell(drafter, 0, ANSWER, **fields)
    assert draft(drafter, make_sequence(1, [1, 2, 3])) == NO_DRAFT
    assert draft(drafter, make_sequence(2, [1, 2, 3], **fields), 4).token_ids == tuple(ANSWER[:4])


def test_a_new_version_of_an_adapter_begins_without_a_history() -> None:
    drafter = SuffixDrafter(HISTORY_BYTES)
    old, same, new = make_adapter("x", 1), make_adapter("x", 1), make_adapter("x", 2)
    tell(drafter, 0, ANSWER, adapter=old)
    assert draft(drafter, make_sequence(1, [1, 2, 3], adapter=new)) == NO_DRAFT
    assert draft(drafter, make_sequence(2, [1, 2, 3], adapter=same), 4).token_ids == tuple(ANSWER[:4])


def test_what_earlier_answers_disagree_about_is_weak_ground() -> None:
    drafter = SuffixDrafter(HISTORY_BYTES)
    tell(drafter, 0, [*ANSWER, 7])
    agreed = draft(drafter, make_sequence(1, ANSWER))
    tell(drafter, 2, [*ANSWER, 8])
    assert draft(drafter, make_sequence(3, ANSWER)).evidence == 0 < agreed.evidence


def test_forgetting_and_closing_may_be_done_at_any_time() -> None:
    drafter = SuffixDrafter(HISTORY_BYTES)
    assert drafter.kind is DrafterKind.SUFFIX
    drafter.forget([7, 7])
    tell(drafter, 0, ANSWER)
    draft(drafter, make_sequence(1, ANSWER))
    drafter.close()
    drafter.close()
    assert (len(drafter.history), drafter.history.num_bytes) == (0, 0)
