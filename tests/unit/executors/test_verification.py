"""What is drawn does not depend on what was guessed: the very same tokens of one chance, and the same distribution."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from support.sampling import exact_distribution, make_sequence
from trierarch.python_backend.executors.cpu.sampler import CpuSampler
from trierarch.python_backend.executors.sampling.uniforms import SECRET_BYTES, Uniforms
from trierarch.python_backend.executors.verification import draw
from trierarch.python_backend.scheduling.plan import ScheduledSequence, SequenceOutput
from trierarch.python_backend.sequence import Continuation, Sequence

VOCAB_SIZE = 5
END_IDS = (4,)
TOKENS = st.integers(0, VOCAB_SIZE - 1)
WORDS = st.lists(st.lists(TOKENS, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)
SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.4, 1.0, 3.0]),
        "top_k": st.integers(0, VOCAB_SIZE),
        "top_p": st.sampled_from([0.3, 0.8, 1.0]),
        "min_p": st.sampled_from([0.0, 0.2]),
        "repetition_penalty": st.sampled_from([0.7, 1.5]),
        "presence_penalty": st.sampled_from([-0.5, 0.9]),
        "frequency_penalty": st.sampled_from([0.6, -0.4]),
        "logit_bias": st.dictionaries(TOKENS, st.floats(-2, 2), max_size=2),
        "bad_words": WORDS,
        "stop_words": WORDS,
        "min_tokens": st.integers(0, 6),
        "seed": st.integers(0, 3),
        "logprobs": st.integers(0, 2),
    },
)


def logits_after(token_ids: list[int]) -> NDArray[np.float32]:
    """The model: logits that depend on all that came before. (vocab)"""
    seed = hash(tuple(token_ids)) % 2**32
    return np.random.default_rng(seed).normal(0.0, 1.5, VOCAB_SIZE).astype(np.float32)


def sampler_with(secret: bytes) -> CpuSampler:
    return CpuSampler(END_IDS, Uniforms(secret))


def verify(sampler: CpuSampler, *drafts: tuple[Sequence, tuple[int, ...]]) -> list[SequenceOutput]:
    """Draw for sequences with drafts behind them."""
    items = [
        ScheduledSequence(sequence, len(sequence.token_ids) - 1, 1, draft, samples=True) for sequence, draft in drafts
    ]
    rows = [
        logits_after([*sequence.token_ids, *draft[:place]])
        for sequence, draft in drafts
        for place in range(len(draft) + 1)
    ]
    logits = np.stack(rows)
    outputs = draw(items, lambda chosen: logits[chosen], sampler)
    return [outputs[sequence.sequence_id] for sequence, _ in drafts]


def step_by_step(sampler: CpuSampler, sequence: Sequence, count: int) -> list[SequenceOutput]:
    """The slow, obvious way: one token after the other, each after those before it."""
    outputs: list[SequenceOutput] = []
    known: tuple[int, ...] = ()
    while len(outputs) < count:
        context = Continuation(sequence, known)
        (output,) = sampler.sample(logits_after(context.token_ids)[None], [context])
        outputs.append(output)
        if output.error is not None:
            break
        known += output.token_ids
    return outputs


@settings(deadline=None, max_examples=300)
@given(
    requests=st.lists(
        st.tuples(
            SAMPLING,
            st.lists(TOKENS, min_size=1, max_size=4).map(tuple),
            st.lists(TOKENS, max_size=3).map(tuple),
            st.lists(st.one_of(st.just(None), TOKENS), max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_draft_changes_nothing_but_how_much_is_drawn_at_once(
    requests: list[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], list[int | None]]],
) -> None:
    """Drafts are any tokens, or (None) the right ones; every parameter is in force; several sequences at once."""
    secret = os.urandom(SECRET_BYTES)
    pairs, expected = [], []
    for sampling, prompt, output, wishes in requests:
        sequence = make_sequence(prompt, output, **sampling)
        right = step_by_step(sampler_with(secret), sequence, len(wishes) + 1)
        draft: list[int] = []
        for wish, drawn in itertools.zip_longest(wishes, right[: len(wishes)]):
            draft.append(wish if wish is not None else drawn.token_ids[0] if drawn and drawn.token_ids else 0)
        pairs.append((sequence, tuple(draft)))
        expected.append(right)
    for (_, draft), right, found in zip(pairs, expected, verify(sampler_with(secret), *pairs), strict=True):
        sound = [drawn for drawn in right if drawn.error is None]
        tokens = [drawn.token_ids[0] for drawn in sound]
        num_right = next((i for i, (a, b) in enumerate(zip(draft, tokens, strict=False)) if a != b), len(draft))
        if not sound:
            assert (found.token_ids, type(found.error)) == ((), type(right[0].error))
            continue
        assert found.token_ids == tuple(tokens[: num_right + 1])
        if found.logprobs is not None:
            assert found.logprobs == tuple(drawn.logprobs[0] for drawn in sound[: num_right + 1] if drawn.logprobs)


@pytest.mark.parametrize("is_seeded", [False, True])
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.15},
        {"repetition_penalty": 1.6, "presence_penalty": 0.3, "frequency_penalty": 0.5},
        {"logit_bias": {0: 1.5, 3: float("-inf")}},
        {"bad_words": ((1,), (0, 2))},
        {"min_tokens": 3},
        {"temperature": 1.4, "top_k": 4, "top_p": 0.9, "frequency_penalty": 0.4, "bad_words": ((2, 2),)},
    ],
    ids=str,
)
def test_two_tokens_drawn_behind_a_draft_have_the_models_distribution(
    sampling: dict[str, Any], is_seeded: bool
) -> None:
    """Chi-square over pairs of tokens, the second one drawn in the same step wherever the draft is accepted."""
    num_draws, sampler = 2000, sampler_with(bytes(SECRET_BYTES))
    counts: Counter[tuple[int, ...]] = Counter()
    for index in range(num_draws):
        sequence = make_sequence((1, 2), **sampling, **({"seed": index} if is_seeded else {}))
        drawn: tuple[int, ...] = ()
        while len(drawn) < 2:
            draft = (index % VOCAB_SIZE, 0)[: 2 - len(drawn)]
            (found,) = verify(sampler, (sequence, draft))
            sequence.token_ids += found.token_ids
            drawn += found.token_ids
        counts[drawn[:2]] += 1
    expected: dict[tuple[int, ...], float] = {}
    start = make_sequence((1, 2), **sampling)
    for first, chance in enumerate(exact_distribution(logits_after([1, 2]), start, END_IDS)):
        if chance > 0:
            after = make_sequence((1, 2), (first,), **sampling)
            for second, next_chance in enumerate(exact_distribution(logits_after([1, 2, first]), after, END_IDS)):
                expected[first, second] = chance * next_chance
    assert all(expected.get(pair, 0.0) > 0.0 for pair in counts)
    common = {pair: chance for pair, chance in expected.items() if chance * num_draws >= 5}
    observed = [counts[pair] for pair in common]
    rest = num_draws - sum(observed), (1 - sum(common.values())) * num_draws
    wanted = [chance * num_draws for chance in common.values()]
    if rest[1] >= 5:
        observed, wanted = [*observed, rest[0]], [*wanted, rest[1]]
    scale = sum(observed) / sum(wanted)
    assert stats.chisquare(observed, [each * scale for each in wanted]).pvalue > 1e-5
