"""Masks against the slow, obvious ways: every token tried by itself, and every string of a finite language written out."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.guiding import allowed, outputs
from support.tokenizers import KINDS, small_tokenizer
from trierarch.python_backend.guides.grammar import Grammars
from trierarch.python_backend.request import GuideKind

ALPHABET = "abc"
TOKENS = [*(text for length in (1, 2, 3) for text in map("".join, itertools.product(ALPHABET, repeat=length))), ""]
END = len(TOKENS) - 1
GRAMMARS = Grammars([token.encode() for token in TOKENS])
MOST = 5
"""Characters of the longest string of a language."""
STRINGS = ["".join(string) for length in range(MOST + 4) for string in itertools.product(ALPHABET, repeat=length)]


def regexes() -> st.SearchStrategy[str]:
    """Regular expressions over ALPHABET."""
    atoms = st.sampled_from([*ALPHABET, "[ab]", "(a|bc)"])
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
            st.tuples(inner, st.sampled_from(["?", "{1,2}", "{2}", "{0,2}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
        ),
        max_leaves=5,
    )


@settings(max_examples=60, deadline=None)
@given(regex=regexes(), seed=st.integers(0, 2**32))
def test_a_mask_has_just_the_tokens_that_lead_to_some_string_of_the_language(regex: str, seed: int) -> None:
    language = [string for string in STRINGS if re.fullmatch(regex, string)]
    if not language or max(map(len, language)) > MOST:
        return  # too large to be written out
    matcher = GRAMMARS.match(GuideKind.REGEX, regex, (END,))
    chance, prefix = random.Random(seed), ""
    while True:
        mask = matcher.mask()
        wanted = {
            token_id
            for token_id, token in enumerate(TOKENS[:-1])
            if any(string.startswith(prefix + token) for string in language)
        }
        assert bool(mask) == bool(wanted)
        if not mask:
            assert prefix in language
            return
        assert set(allowed(mask, END)) == wanted
        assert (END in allowed(mask, END + 1)) == (prefix in language)
        token_id = chance.choice(sorted(wanted))
        assert matcher.accept(token_id)
        prefix += TOKENS[token_id]


GUIDES = [
    (GuideKind.JSON, ""),
    (GuideKind.JSON_SCHEMA, '{"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}}}'),
    (GuideKind.REGEX, r"(the |quick )*[0-9a-f]{2,4}é?"),
    (GuideKind.EBNF, 'root ::= "(" root ")" | "[" root "]" | word\nword ::= [a-z ]+'),
]


@pytest.mark.parametrize("tokenizer", KINDS)
@pytest.mark.parametrize(("kind", "text"), GUIDES)
def test_a_mask_has_just_the_tokens_that_are_accepted(tokenizer: str, kind: GuideKind, text: str) -> None:
    """In vocabularies with long tokens, bytes, special tokens and places that no token fills."""
    ours = small_tokenizer(tokenizer)
    vocab_size = ours.vocab_size + 3
    tokens = [b"" if i in ours.special_ids else ours.bytes.of(i) for i in range(vocab_size)]
    end = next(iter(ours.special_ids))
    matcher = Grammars(tokens).match(kind, text, (end,))
    chance = random.Random(7)
    for _ in range(12):
        mask = matcher.mask()
        if not mask:
            break
        accepted = []
        for token_id in range(vocab_size):
            if matcher.accept(token_id):
                accepted.append(token_id)
                matcher.rollback(1)
        assert [token_id for token_id in allowed(mask, vocab_size) if token_id != end] == accepted
        assert all(tokens[token_id] for token_id in accepted)
        matcher.accept(chance.choice(accepted))


def test_an_end_token_that_is_a_piece_of_text_ends_the_output_and_is_no_piece_of_it() -> None:
    a = TOKENS.index("a")
    matcher = GRAMMARS.match(GuideKind.REGEX, "a{2,3}b?", (a,))
    assert not matcher.accept(a)
    assert a not in allowed(matcher.mask(), END)
    assert matcher.accept(TOKENS.index("aa"))
    assert allowed(matcher.mask(), END) == sorted([a, TOKENS.index("b"), TOKENS.index("ab")])


def test_without_end_tokens_an_output_ends_where_nothing_can_follow() -> None:
    matcher = GRAMMARS.match(GuideKind.REGEX, "ab?", ())
    matcher.accept(TOKENS.index("a"))
    assert allowed(matcher.mask(), END) == [TOKENS.index("b")]
    matcher.accept(TOKENS.index("b"))
    assert matcher.mask() == b""


@settings(max_examples=40, deadline=None)
@given(
    regex=st.from_regex(r"[a-c]([a-c.?*+]|\[[a-c]{1,3}\]|\\d|\{2,3\}){0,6}", fullmatch=True), seed=st.integers(0, 99)
)
def test_outputs_of_a_regex_match_it(regex: str, seed: int) -> None:
    try:
        compiled = re.compile(regex, re.DOTALL)
        texts = outputs(GuideKind.REGEX, regex, 4, seed)
    except (re.error, RuntimeError):
        return
    for text in texts:
        assert compiled.fullmatch(text.decode()), (regex, text)


def test_where_nothing_can_follow_an_end_token_may() -> None:
    matcher = GRAMMARS.match(GuideKind.REGEX, "ab", (END, TOKENS.index("b")))
    assert allowed(matcher.end_mask(), END + 1) == sorted([END, TOKENS.index("b")])
    assert allowed(GRAMMARS.match(GuideKind.REGEX, "ab", ()).end_mask(), END + 1) == []
    assert allowed(matcher.mask(), END + 1) == sorted([TOKENS.index("a"), TOKENS.index("ab")])
