"""Top-k, top-p and min-p: which tokens keep their weight.

Each keeps a prefix of the tokens in order of weight, cut at a threshold; tokens tied with the last one kept are kept
too, so that the cut depends neither on the order of a sort nor on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Final

import torch

from trierarch.python_backend.request import SamplingParams

# Largest weights among which a nucleus is first looked for; sorting a whole vocabulary costs a hundred times more.
_NUCLEUS_GUESS: Final = 128
_NUCLEUS_GROWTH: Final = 16

_QUANTA: Final = 2.0**60


def quantize(weights: torch.Tensor) -> torch.Tensor:
    """Weights in [0, 1] as integers, so that their sums are exact: the same on every device, in every batch.

    Weights below 2**-60 become 0. The total of a row must stay below 8.
    """
    return (weights * _QUANTA).to(torch.int64)


def truncate(weights: torch.Tensor, samplings: Rows[SamplingParams]) -> None:
    """Zero the weights (n, vocab) that row i's top_k, top_p (arXiv 1904.09751), min_p (arXiv 2407.01082) leave out."""
    by_top_k = [row for row, sampling in enumerate(samplings) if 0 < sampling.top_k < weights.shape[1]]
    if by_top_k:
        top_k = [samplings[row].top_k for row in by_top_k]
        _cut(weights, by_top_k, lambda kept: _kth_largest(kept, top_k))
    by_top_p = [row for row, sampling in enumerate(samplings) if sampling.top_p < 1.0]
    if by_top_p:
        top_p = [samplings[row].top_p for row in by_top_p]
        _cut(weights, by_top_p, lambda kept: _nucleus(kept, top_p))
    by_min_p = [row for row, sampling in enumerate(samplings) if sampling.min_p > 0.0]
    if by_min_p:
        min_p = torch.tensor([samplings[row].min_p for row in by_min_p], device=weights.device)
        _cut(weights, by_min_p, lambda kept: kept.amax(1) * min_p)


def _kth_largest(weights: torch.Tensor, top_k: list[int]) -> torch.Tensor:
    """Row i's top_k[i]-th largest weight. (n)"""
    largest = weights.topk(max(top_k)).values
    return _pick(largest, torch.tensor(top_k, device=weights.device) - 1)


def _nucleus(weights: torch.Tensor, top_p: list[float]) -> torch.Tensor:
    """Smallest weight in each row's nucleus: the fewest of the largest weights that hold a share top_p. (n)"""
    shares = torch.tensor(top_p, device=weights.device, dtype=torch.float64)
    wanted = shares * quantize(weights).sum(1)
    num_largest = min(_NUCLEUS_GUESS, weights.shape[1])
    while True:
        largest = weights.topk(num_largest).values
        held = quantize(largest).cumsum(1)
        if num_largest == weights.shape[1] or bool((held[:, -1] >= wanted).all()):
            break
        num_largest = min(num_largest * _NUCLEUS_GROWTH, weights.shape[1])
    last = (held < wanted[:, None]).sum(1).clamp(max=num_largest - 1)
    return _pick(largest, last)


def _pick(values: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """values[i, columns[i]] of each row. (n)"""
    return values.gather(1, columns[:, None])[:, 0]


def _cut(weights: torch.Tensor, rows: list[int], threshold: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Zero what lies below the `threshold` of each of `rows`, in place."""
    at = torch.tensor(rows, device=weights.device)
    kept = weights if len(rows) == len(weights) else weights.index_select(0, at)
    kept = torch.where(kept < threshold(kept)[:, None], 0.0, kept)
    weights.index_copy_(0, at, kept)
