"""Candidates of beams: log-probs that guide, bias, penalties and masks edit, against the slow way of writing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.sampling import OpenSampler, make_sequence, masked, penalized
from trierarch.python_backend.sequence import Continuation

VOCAB = 40
END_IDS = (0,)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16),
    repetition=st.sampled_from([1.0, 0.7, 1.5]),
    counted=st.sampled_from([(0.0, 0.0), (0.4, -0.3), (-1.0, 0.5)]),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([3.0, -2.0, -np.inf]), max_size=6),
    allowed=st.none() | st.sets(st.integers(0, VOCAB - 1), max_size=12),
    min_tokens=st.sampled_from([0, 9]),
    k=st.integers(1, 20),
)
def test_the_likeliest_tokens_that_are_left(
    open_sampler: OpenSampler,
    seed: int,
    repetition: float,
    counted: tuple[float, float],
    bias: dict[int, float],
    allowed: set[int] | None,
    min_tokens: int,
    k: int,
) -> None:
    logits = 3 * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed))
    sequence = make_sequence(
        (1, 2, 3),
        (4, 5, 4),
        temperature=0.0,
        repetition_penalty=repetition,
        presence_penalty=counted[0],
        frequency_penalty=counted[1],
        logit_bias=bias,
        bad_words=((4, 6), (7,)),
        min_tokens=min_tokens,
        logprobs=k,
        edited_logprobs=True,
    )
    bits = None if allowed is None else np.packbits([t in allowed for t in range(VOCAB)], bitorder="little").tobytes()
    (output,) = open_sampler(VOCAB, END_IDS).sample(logits, [Continuation(sequence, (), bits)])

    scores = masked(penalized(logits[0].double().log_softmax(0).numpy(), sequence), sequence, END_IDS)
    scores[[token for token in range(VOCAB) if allowed is not None and token not in allowed]] = -np.inf
    best = [token for token in np.argsort(-scores, kind="stable").tolist() if np.isfinite(scores[token])][:k]
    assert output.error is None
    assert output.token_ids == (int(logits.argmax()),)
    assert output.logprobs is not None
    assert [token for token, _ in output.logprobs[0].top] == best
    assert [value for _, value in output.logprobs[0].top] == pytest.approx(scores[best].tolist(), abs=1e-4)


def test_rows_that_edit_and_rows_that_do_not_stand_beside_each_other(open_sampler: OpenSampler) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    plain = make_sequence(temperature=0.0, logprobs=2, repetition_penalty=2.0)
    edited = make_sequence(temperature=0.0, logprobs=3, logit_bias={9: 50.0}, edited_logprobs=True)
    mute = make_sequence(temperature=0.0)
    outputs = open_sampler(VOCAB, END_IDS).sample(logits, [plain, edited, mute])
    own = logits.log_softmax(1)
    assert outputs[0].logprobs is not None
    assert [token for token, _ in outputs[0].logprobs[0].top] == own[0].topk(2).indices.tolist()
    assert outputs[1].logprobs is not None
    assert outputs[1].logprobs[0].top[0] == (9, pytest.approx(float(own[1, 9]) + 50, abs=1e-4))
    assert outputs[2].logprobs is None
