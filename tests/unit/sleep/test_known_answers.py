from __future__ import annotations

import pytest

from trierarch.orchestrator.sleep import known_answers
from trierarch.orchestrator.sleep.known_answers import KnownAnswers


def test_the_least_recently_asked_for_is_forgotten_and_the_large_never_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, "MAX_ANSWERS", 2)
    known = KnownAnswers[str]()
    known.put("a", "A", 1)
    known.put("b", "B", 1)
    assert known.get("a") == "A"
    known.put("c", "C", 1)
    known.put("d", "D", known_answers.MAX_ANSWER_BYTES + 1)

    assert [known.get(call) for call in "abcd"] == ["A", None, "C", None]
