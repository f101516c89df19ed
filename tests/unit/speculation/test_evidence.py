from __future__ import annotations

from trierarch.python_backend.speculation.drafter import MAX_EVIDENCE
from trierarch.python_backend.speculation.evidence import evidence_of
from trierarch.python_backend.speculation.suffix_index import MAX_DEPTH


def test_evidence_is_monotone_and_uses_its_range() -> None:
    own = [evidence_of(length, is_own=True) for length in range(1, MAX_DEPTH + 1)]
    other = [evidence_of(length, is_own=False) for length in range(1, MAX_DEPTH + 1)]
    assert own == sorted(own)
    assert other == sorted(other)
    assert all(ours >= theirs for ours, theirs in zip(own, other, strict=True))
    assert set(own) | set(other) | {evidence_of(9, is_own=True, share=0.5)} == set(range(MAX_EVIDENCE + 1))


def test_where_occurrences_disagree_the_ground_is_the_least_firm_of_all() -> None:
    assert evidence_of(MAX_DEPTH, is_own=True, share=0.5) < evidence_of(1, is_own=False, share=0.6)
