"""Top-k, top-p and min-p: which tokens keep their weight.

Each keeps a prefix of the tokens in order of weight, cut at a threshold; tokens tied with the last one kept are kept
too, so that the cut depends neither on the order of a sort nor on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Final

import torch

from trierarch.python_backend.executors.sampling.sampler import QUANTA
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.request import SamplingParams

# Largest weights among which a nucleus is looked for before all of them are counted.
_NUCLEUS_GUESS: Final = 128


def quantize(weights: torch.Tensor) -> torch.Tensor:
    """Weights in [0, 1] as integers of 1 / QUANTA."""
    return (weights * QUANTA).to(torch.int64)


def truncate(weights: torch.Tensor, samplings: Rows[SamplingParams], asks_nothing: bool = False) -> None:
    """Zero the weights (n, vocab) that row i's top_k, top_p (arXiv 1904.09751), min_p (arXiv 2407.01082) leave out.

    asks_nothing: the host does not look at a number of the device's on the way.
    """
    by_top_k = [row for row, sampling in enumerate(samplings) if 0 < sampling.top_k < weights.shape[1]]
    if by_top_k:
        top_k = [samplings[row].top_k for row in by_top_k]
        _cut(weights, by_top_k, lambda kept: _kth_largest(kept, top_k))
    by_top_p = [row for row, sampling in enumerate(samplings) if sampling.top_p < 1.0]
    if by_top_p:
        top_p = [samplings[row].top_p for row in by_top_p]
        _cut(weights, by_top_p, lambda kept: _nucleus(kept, top_p, asks_nothing))
    by_min_p = [row for row, sampling in enumerate(samplings) if sampling.min_p > 0.0]
    if by_min_p:
        min_p = on_device([samplings[row].min_p for row in by_min_p], weights.device)
        _cut(weights, by_min_p, lambda kept: kept.amax(1) * min_p)


def _kth_largest(weights: torch.Tensor, top_k: list[int]) -> torch.Tensor:
    """Row i's top_k[i]-th largest weight. (n)"""
    largest = weights.topk(max(top_k)).values
    return _pick(largest, on_device(top_k, weights.device) - 1)


def _nucleus(weights: torch.Tensor, top_p: list[float], asks_nothing: bool) -> torch.Tensor:
    """Smallest weight in each row's nucleus: the fewest of the largest weights that hold a share top_p. (n)"""
    quanta = quantize(weights)
    shares = on_device(torch.tensor(top_p, dtype=torch.float64), weights.device)
    wanted = (shares * quanta.sum(1)).ceil().to(torch.int64)
    if asks_nothing:
        return _nucleus_by_counting(weights, quanta, wanted)
    largest = weights.topk(min(_NUCLEUS_GUESS, weights.shape[1])).values
    held = quantize(largest).cumsum(1)
    if bool((held[:, -1] < wanted).any()):
        return _nucleus_by_counting(weights, quanta, wanted)
    return _pick(largest, (held < wanted[:, None]).sum(1))


def _nucleus_by_counting(weights: torch.Tensor, quanta: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The same threshold for a nucleus of any width, by radix selection: sorting would cost ten times more. (n)

    Floats from 0 on are in the order of their bits. The upper half of the threshold's bits is found first, then the
    lower half among the weights that share the upper.
    """
    bits = weights.view(torch.int32).to(torch.int64)
    upper, lower = bits >> 16, bits & 0xFFFF
    bin_, above = _bin_where_held(upper, quanta, 1 << 14, wanted)
    in_bin = torch.where(upper == bin_[:, None], quanta, 0)
    last, _ = _bin_where_held(lower, in_bin, 1 << 16, wanted - above)
    return (bin_ << 16 | last).to(torch.int32).view(torch.float32)


def _bin_where_held(
    bins: torch.Tensor, quanta: torch.Tensor, num_bins: int, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest bin that, with those above it, holds what is `wanted`, and what those above it hold. (n), (n)"""
    mass = quanta.new_zeros(len(quanta), num_bins).scatter_add_(1, bins, quanta).flip(1)
    held = mass.cumsum(1)
    place = (held < wanted[:, None]).sum(1).clamp(max=num_bins - 1)
    return num_bins - 1 - place, _pick(held - mass, place)


def _pick(values: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """values[i, columns[i]] of each row. (n)"""
    return values.gather(1, columns[:, None])[:, 0]


def _cut(weights: torch.Tensor, rows: list[int], threshold: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Zero what lies below the `threshold` of each of `rows`, in place."""
    at = on_device(rows, weights.device)
    kept = weights if len(rows) == len(weights) else weights.index_select(0, at)
    kept = torch.where(kept < threshold(kept)[:, None], 0.0, kept)
    weights.index_copy_(0, at, kept)
