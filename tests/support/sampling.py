"""Sequences to sample for, samplers of either kind, and the distribution each must be drawn from, worked out slowly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trierarch.python_backend.executors.cpu.sampler import CpuSampler
from trierarch.python_backend.executors.torch.sampler import TorchSampler
from trierarch.python_backend.request import Request, SamplingParams, TokenLogprob
from trierarch.python_backend.scheduling.plan import SequenceOutput
from trierarch.python_backend.sequence import Context, Sequence

_ids = itertools.count()


class CpuSamplerOfTensors:
    """A CpuSampler that takes and gives tensors as a TorchSampler does, so that one test holds both."""

    def __init__(self, vocab_size: int, end_ids: tuple[int, ...]) -> None:
        self._sampler = CpuSampler(end_ids)

    def sample(self, logits: torch.Tensor, sequences: Rows[Context]) -> list[SequenceOutput]:
        return self._sampler.sample(logits.numpy(), sequences)

    def weights(self, logits: torch.Tensor, sequences: Rows[Context]) -> torch.Tensor:
        return torch.from_numpy(self._sampler.weights(logits.numpy(), sequences))

    def probabilities(self, logits: torch.Tensor, sequences: Rows[Context]) -> torch.Tensor:
        return torch.from_numpy(self._sampler.probabilities(logits.numpy(), sequences))

    def prompt_logprobs(self, logits: torch.Tensor, token_ids: list[int], k: int) -> tuple[TokenLogprob, ...]:
        return self._sampler.prompt_logprobs(logits.numpy(), token_ids, k)

    def forget(self, sequence_ids: Rows[int]) -> None:
        self._sampler.forget(sequence_ids)


AnySampler = TorchSampler | CpuSamplerOfTensors
OpenSampler = Callable[[int, tuple[int, ...]], AnySampler]
"""Of a vocabulary's size and the engine's end tokens."""


def torch_sampler(vocab_size: int, end_ids: tuple[int, ...]) -> TorchSampler:
    """On the CPU."""
    return TorchSampler(vocab_size, end_ids, torch.device("cpu"))


def one_answer_sampler(vocab_size: int, end_ids: tuple[int, ...]) -> TorchSampler:
    """Also on the CPU, as it works off it: the host hears of a step once."""
    return TorchSampler(vocab_size, end_ids, torch.device("cpu"), asks_once=True)


def make_sequence(
    prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), *, index: int = 0, **sampling: Any
) -> Sequence:
    """A sequence that has drawn `output`, as the scheduler would show it."""
    params = SamplingParams(**{"max_tokens": 1000, "n": index + 1, **sampling})
    request = Request(request_id="r", prompt_token_ids=prompt, sampling=params, arrival_time=0.0)
    return Sequence(next(_ids), request, index, [*prompt, *output])


def exact_distribution(
    logits: NDArray[np.float32], sequence: Sequence, end_ids: tuple[int, ...] = ()
) -> NDArray[np.float64]:
    """What SamplingParams promises, one step after another, one token after another, in float64. (vocab)"""
    params = sequence.request.sampling
    scores = masked(penalized(logits.astype(np.float64), sequence), sequence, end_ids)
    if params.is_greedy:
        return np.eye(len(scores))[int(np.argmax(scores))]
    scores = scores / params.temperature
    weights = np.exp(scores - scores.max())
    if params.top_k:
        weights[weights < np.sort(weights)[::-1][: params.top_k][-1]] = 0.0
    if params.top_p < 1.0:
        held, wanted, order = 0.0, params.top_p * weights.sum(), np.argsort(-weights, kind="stable")
        for token in order:
            weights[token], held = (weights[token], held + weights[token]) if held < wanted else (0.0, held)
    weights[weights < params.min_p * weights.max()] = 0.0
    return np.asarray(weights / weights.sum())


def penalized(scores: NDArray[np.float64], sequence: Sequence) -> NDArray[np.float64]:
    """Scores (vocab) with bias and penalties, in place."""
    params = sequence.request.sampling
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token in range(len(scores)):
        if token in sequence.token_ids:
            repetition = params.repetition_penalty
            scores[token] = scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
        count = sequence.output_token_ids.count(token)
        scores[token] -= params.presence_penalty * (count > 0) + params.frequency_penalty * count
    return scores


def masked(scores: NDArray[np.float64], sequence: Sequence, end_ids: tuple[int, ...]) -> NDArray[np.float64]:
    """Scores (vocab) without what may not be drawn, in place."""
    params, known, output = sequence.request.sampling, sequence.token_ids, sequence.output_token_ids
    own_end_ids = end_ids if params.end_ids is None else params.end_ids
    for token in range(len(scores)):
        is_banned = any((*known, token)[-len(word) :] == word for word in params.bad_words)
        if len(output) < params.min_tokens:
            is_banned |= token in own_end_ids
            is_banned |= any((*output, token)[-len(word) :] == word for word in params.stop_words)
        if is_banned:
            scores[token] = -np.inf
    return scores
