"""Guided outputs of real engines: they obey, whatever they are batched with, guessed of them or taken from them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.asking import PROMPT, Client
from support.guided_answers import EBNF, END, NO_SPACES, REGEX, SCHEMA, TOKENIZER, obeys, text_of
from support.guiding import readable_engine
from support.random_engine import with_kernels
from trierarch.builder.compile import find_compiler
from trierarch.builder.manifest import MANIFEST_NAME, TOKENIZER_NAME
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.guides.grammar import Grammars
from trierarch.python_backend.request import (
    FinishReason,
    Guide,
    GuideKind,
)


@pytest.fixture(scope="module", params=["eager", "compiled"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of an engine with few blocks, so that sequences beside each other are preempted."""
    folder = tmp_path_factory.mktemp("engine")
    shape = {"block_size": 16, "num_blocks": 5} if request.param == "compiled" else {"block_size": 4, "num_blocks": 18}
    manifest = readable_engine(folder, **shape)
    if request.param == "compiled":
        if find_compiler() is None:
            pytest.skip("no C++ compiler")
        (folder / MANIFEST_NAME).write_text(with_kernels(folder, manifest).to_json())
    executor = open_executor(folder)
    yield Client(executor)
    executor.close()


@pytest.mark.parametrize("guide", [REGEX, SCHEMA, EBNF])
def test_outputs_obey_at_any_temperature(client: Client, guide: Guide) -> None:
    bias = NO_SPACES if guide is SCHEMA else {}
    asks = [
        {"guide": guide, "temperature": 3.0, "seed": seed, "n": 2, "max_tokens": 50, "logit_bias": bias}
        for seed in range(4)
    ]
    streams = client.ask({"guide": guide}, *asks, {"temperature": 2.0})
    assert all(obeys(stream, guide) for stream in streams[:-1])
    assert sum(stream.reason is FinishReason.STOP for stream in streams[:-1]) >= 3
    assert streams[-1].error is None


def test_guided_greedy_takes_the_likeliest_token_that_the_grammar_accepts(client: Client) -> None:
    """Against the slow way: a token at a time, each token of the vocabulary tried, unguided logits looked through."""
    (whole,) = client.ask({"guide": REGEX, "return_generation_logits": True})
    rows = [row for delta in whole.deltas for row in delta.generation_logits or ()]
    tokens = [b"" if i in TOKENIZER.special_ids else TOKENIZER.bytes.of(i) for i in range(len(rows[0]))]
    matcher = Grammars(tokens).match(REGEX.kind, REGEX.text, (END,))
    output: list[int] = []
    for row in rows:
        (step,) = client.ask({"prompt": (*PROMPT, *output), "max_tokens": 1, "return_generation_logits": True})
        (logits,) = step.deltas[0].generation_logits or ()
        np.testing.assert_allclose(row, logits, atol=1e-5)
        best, best_token = -np.inf, -1
        for token, logit in enumerate(logits.tolist()):
            if logit > best and matcher.accept(token):
                matcher.rollback(1)
                best, best_token = logit, token
        output.append(best_token)
        assert matcher.accept(best_token)
    assert whole.token_ids == output
    assert re.fullmatch(REGEX.text, text_of(whole))


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_guesses_neighbours_and_preemption_change_nothing(client: Client, seed: int) -> None:
    chance = random.Random(seed)
    asks: list[dict[str, Any]] = [
        {
            "guide": chance.choice([REGEX, SCHEMA, EBNF, None]),
            "prompt": tuple(chance.randrange(2, 200) for _ in range(chance.randint(1, 9))),
            "temperature": chance.choice([0.0, 1.5]),
            "seed": chance.randrange(100),
            "min_tokens": chance.choice([0, 0, 6]),
            "max_tokens": 20,
            "end_ids": chance.choice([None, (), (END, 70)]),
            "repetition_penalty": chance.choice([1.0, 1.3]),
            "logprobs": chance.choice([None, 0]),
        }
        for _ in range(6)
    ]
    alone = [client.ask(dict(ask))[0] for ask in asks]
    guessed = [{**ask, "draft": _draft(stream.token_ids, chance)} for ask, stream in zip(asks, alone, strict=True)]
    together = client.ask(*guessed)
    for ask, one, other in zip(asks, alone, together, strict=True):
        assert (one.token_ids, one.reason, str(one.error)) == (other.token_ids, other.reason, str(other.error))
        if ask["guide"] is not None and one.error is None and ask["end_ids"] != (END, 70):
            assert obeys(one, ask["guide"])
        if ask["logprobs"] == 0:
            logprobs = [each for delta in other.deltas for each in delta.logprobs or ()]
            assert [each.token_id for each in logprobs] == other.token_ids
    _SEEN.append(sum(stream.num_preemptions for stream in together))


_SEEN: list[int] = []
"""Preemptions of each example."""


def test_sequences_were_preempted() -> None:
    assert sum(_SEEN) > 0


def _draft(answer: list[int], chance: random.Random) -> tuple[int, ...]:
    """A guess that is right in part, and maybe leaves the grammar."""
    draft = list(answer) + [END] * chance.randint(0, 2)
    for _ in range(chance.randint(0, 2)):
        if draft:
            draft[chance.randrange(len(draft))] = chance.randrange(200)
    return tuple(draft[: chance.randint(0, len(draft))])


def test_an_output_that_is_complete_ends_even_where_no_end_token_may_be_drawn(client: Client) -> None:
    guide = Guide(GuideKind.REGEX, "[0-9]{3}")
    for ask in ({"end_ids": ()}, {"min_tokens": 20}, {}, {"draft": tuple(TOKENIZER.encode("123the"))}):
        (stream,) = client.ask({"guide": guide, **ask})
        assert re.fullmatch("[0-9]{3}", text_of(stream))
        assert stream.reason is FinishReason.STOP


def test_stop_words_end_an_output_amid_its_grammar(client: Client) -> None:
    guide = Guide(GuideKind.REGEX, "(ab){9}")
    words = tuple(tuple(TOKENIZER.encode(text)) for text in ("b", "ab"))
    (stream,) = client.ask({"guide": guide, "stop_words": words})
    assert stream.reason is FinishReason.STOP
    assert len(stream.token_ids) <= 2


def test_what_leaves_no_token_is_an_error_of_that_request_alone(client: Client) -> None:
    letters = {token: -np.inf for token in range(256) if TOKENIZER.bytes.of(token).startswith((b"a", b"b"))}
    blocked, free = client.ask(
        {"guide": Guide(GuideKind.REGEX, "[ab]"), "logit_bias": letters}, {"guide": Guide(GuideKind.REGEX, "[ab]")}
    )
    assert isinstance(blocked.error, InvalidRequest)
    assert blocked.error.field == "guide, logit_bias, bad_words, min_tokens"
    assert text_of(free) in ("a", "b")


@pytest.mark.parametrize(
    ("guide", "says"),
    [
        (Guide(GuideKind.REGEX, "(a"), r"guide is '\(a': Regex parsing error at position 3: The parenthesis is not"),
        (Guide(GuideKind.EBNF, "root ::= nothing"), "guide is .*nothing"),
        (Guide(GuideKind.EBNF, 'root ::= ""'), "it allows no output but an empty one"),
        (Guide(GuideKind.EBNF, "root ::= root"), "it allows no output but an empty one"),
        (
            Guide(GuideKind.JSON_SCHEMA, '{"type": "integer", "minimum": 5, "maximum": 3}'),
            "minimum greater than maximum",
        ),
    ],
)
def test_a_bad_guide_is_named_and_disturbs_nobody(client: Client, guide: Guide, says: str) -> None:
    bad, good = client.ask({"guide": guide}, {"guide": EBNF})
    assert isinstance(bad.error, InvalidRequest)
    assert re.search(says, str(bad.error))
    assert bad.error.field == "guide"
    assert "/project" not in str(bad.error)
    assert obeys(good, EBNF)


def test_what_will_not_be_served_is_refused_at_once(client: Client) -> None:
    for guide, says in (
        (Guide(GuideKind.REGEX, "a" * 70_000), "has 70000 bytes, at most 65536 are taken"),
        (Guide(GuideKind.REGEX, "a^b"), "has an anchor at 1"),
        (Guide(GuideKind.REGEX, "\ud800"), "is not valid Unicode"),
        (Guide(GuideKind.JSON_SCHEMA, '{"not": {}}'), "this JSON schema is not served: #: it needs a type"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            client.ask({"guide": guide})


def test_an_engine_without_a_tokenizer_takes_no_guides(tmp_path: Path) -> None:
    readable_engine(tmp_path)
    (tmp_path / TOKENIZER_NAME).unlink()
    executor = open_executor(tmp_path)
    try:
        with pytest.raises(InvalidRequest, match=r"^guide is 'json': this engine has no tokenizer"):
            Client(executor).ask({"guide": Guide(GuideKind.JSON)})
    finally:
        executor.close()


@pytest.mark.parametrize("ask", [{}, {"temperature": 1.5, "seed": 4, "repetition_penalty": 1.3, "min_tokens": 6}])
def test_an_answer_goes_on_from_any_of_its_tokens_as_if_it_had_never_stopped(
    client: Client, ask: dict[str, Any]
) -> None:
    for guide in (REGEX, None):
        asked = {"guide": guide, "max_tokens": 8, "frequency_penalty": 0.4, **ask}
        (whole,) = client.ask(dict(asked))
        for place in range(len(whole.token_ids)):
            (rest,) = client.ask({**asked, "answer_so_far": tuple(whole.token_ids[:place])})
            assert rest.token_ids == whole.token_ids[place:]
            assert rest.reason is whole.reason
    with pytest.raises(InvalidRequest, match="max_tokens is 2: must be above the 2 output tokens that are known"):
        client.ask({"max_tokens": 2, "answer_so_far": (5, 6)})
    with pytest.raises(InvalidRequest, match="answer_so_far is 999"):
        client.ask({"max_tokens": 2, "answer_so_far": (999,)})
