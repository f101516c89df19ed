from __future__ import annotations

import pytest

from trierarch.benchmarks.chats import Chats, Kind, messages


def words(text: str) -> list[int]:
    """A tokenizer of words."""
    return [hash(word) for word in text.split()]


@pytest.mark.parametrize("kind", Kind)
def test_prompts_depend_on_seed_and_key_alone(kind: Kind) -> None:
    chats = Chats(1, words)

    assert chats.prompts(kind, "key", 8) == chats.prompts(kind, "key", 8)
    assert chats.prompts(kind, "key", 3) == chats.prompts(kind, "key", 8)[:3]
    assert chats.prompts(kind, "key", 3) != chats.prompts(kind, "other", 3)
    assert chats.prompts(kind, "key", 3) != Chats(2, words).prompts(kind, "key", 3)


@pytest.mark.parametrize("kind", Kind)
def test_prompts_of_a_call_all_differ(kind: Kind) -> None:
    assert len(set(messages(kind, "key", 64))) == 64


def test_no_slot_is_left_open() -> None:
    for kind in Kind:
        assert not [text for text in messages(kind, "key", 50) if "{" in text or "}" in text]


def test_an_edit_asks_for_a_name_that_is_there() -> None:
    for text in messages(Kind.EDIT, "key", 20):
        _, new, _, old, _ = text.partition("\n\n")[0].split('"')
        code = text.partition("\n\n")[2]
        assert code.count(f'"{old} ') == 2
        assert old != new
        compile(code, "edit", "exec")


@pytest.mark.parametrize("kind", [Kind.COPY, Kind.EDIT])
def test_what_is_to_be_copied_outlasts_the_answer(kind: Kind) -> None:
    """In words, of which a token is the most."""
    for text in messages(kind, "key", 20):
        copied = text.partition("\n\n")[2]
        assert len(copied.replace("(", " ").replace(".", " ").replace("_", " ").split()) > (
            128 if kind is Kind.COPY else 70
        )
