"""Two tokenizers have one vocabulary if they call the ids the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from trierarch.builder.errors import ConfigError
from trierarch.builder.vocabulary import check_same_vocabulary

TOKENS = ("a", "b", "c", "d", "e")


def tokenizer(tokens: dict[int, str], added: tuple[str, ...] = ()) -> bytes:
    """Of tokens by id; `added` ones get the ids after them."""
    made = Tokenizer(models.WordLevel(vocab={token: index for index, token in tokens.items()}, unk_token="a"))
    made.add_tokens([AddedToken(token, special=True) for token in added])
    content: str = made.to_str()
    return content.encode()


def listed(*tokens: str) -> dict[int, str]:
    return dict(enumerate(tokens))


def test_the_first_id_that_differs_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"token 1 is 'x' there and 'b' in the model; take a draft of the same family"
    ):
        check_same_vocabulary(tokenizer(listed(*"abc")), tokenizer(listed(*"axy")), 3)


def test_a_token_that_the_draft_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"token 2 is missing there and 'c' in the model"):
        check_same_vocabulary(tokenizer(listed(*"abc")), tokenizer(listed(*"ab")), 3)


def test_a_chat_model_may_have_tokens_that_its_base_lacks() -> None:
    base, chat = tokenizer(listed(*"ab")), tokenizer(listed(*"ab"), ("<|user|>", "<|end|>"))
    check_same_vocabulary(chat, base, 4)
    check_same_vocabulary(base, chat, 4)
    with pytest.raises(ConfigError, match=r"token 2 is '<\|tool\|>' there and '<\|user\|>' in the model"):
        check_same_vocabulary(chat, tokenizer(listed(*"ab"), ("<|tool|>",)), 4)


def test_padding_entries_are_nobodys() -> None:
    plain, padded = tokenizer(listed(*"ab")), tokenizer(listed("a", "b", "[PAD2]", "[PAD3]"))
    for target, draft in ((plain, padded), (padded, plain)):
        check_same_vocabulary(target, draft, 4)
    with pytest.raises(ConfigError, match="token 2 is"):
        check_same_vocabulary(tokenizer(listed("a", "b", "[PAD3]")), plain, 4)


def test_ids_that_the_model_has_no_embedding_for_do_not_count() -> None:
    check_same_vocabulary(tokenizer(listed(*"abc")), tokenizer(listed(*"abx")), 2)


@given(
    target=st.lists(st.sampled_from(TOKENS), unique=True, min_size=1),
    draft=st.lists(st.sampled_from(TOKENS), unique=True, min_size=1),
    vocab_size=st.integers(1, 6),
)
def test_it_passes_just_where_every_id_of_the_model_agrees(
    target: list[str], draft: list[str], vocab_size: int
) -> None:
    agrees = target[:vocab_size] == draft[: len(target[:vocab_size])]
    try:
        check_same_vocabulary(tokenizer(listed(*target)), tokenizer(listed(*draft)), vocab_size)
    except ConfigError:
        assert not agrees
    else:
        assert agrees
