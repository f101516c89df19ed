"""Top-k, top-p and min-p of one row: which tokens keep their weight, and what they weigh.

The same cuts as `torch/truncation.py` makes: each keeps a prefix of the tokens in order of weight, cut at a threshold,
and tokens tied with the last one kept are kept too. Work goes into the few tokens that may be kept wherever a cheap
bound tells which these are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trierarch.python_backend.executors.sampling.largest import floor_of_largest
from trierarch.python_backend.executors.sampling.sampler import QUANTA
from trierarch.python_backend.executors.sampling.token_history import Floats, Ids
from trierarch.python_backend.request import SamplingParams

Quanta = npt.NDArray[np.int64]

# Logits closer than this may have equal weights in float32, whose ties are all kept.
_TIE: Final = np.float32(2.0**-20)
# Largest weights among which a nucleus is looked for before all of them are counted.
_NUCLEUS_GUESS: Final = 128
# What is sorted as it stands.
_FEW: Final = 2048
_HALF_BITS: Final = 30


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be drawn of one row: weights in [0, 1] that sum to 1 at most, in the order of the tokens."""

    weights: Floats  # (m)
    token_ids: Ids | None = None  # (m), rising; None where they are 0 to m - 1

    def keep(self, threshold: np.float32) -> Candidates:
        """Those of at least that weight."""
        places = np.flatnonzero(self.weights >= threshold)
        return Candidates(self.weights[places], places if self.token_ids is None else self.token_ids[places])

    def token(self, place: int) -> int:
        """The token at a place among them."""
        return place if self.token_ids is None else int(self.token_ids[place])


def quantize(weights: Floats) -> Quanta:
    """Weights in [0, 1] as integers of 1 / QUANTA."""
    return (weights * np.float32(QUANTA)).astype(np.int64)


def candidates(scaled: Floats, sampling: SamplingParams) -> Candidates:
    """The softmax of one row as the cuts leave it, but for a factor.

    scaled: (vocab), divided by the temperature, the largest 0; it is overwritten. Cuts are top_k, top_p (arXiv
    1904.09751) and min_p (arXiv 2407.01082), in this order.
    """
    is_cut = 0 < sampling.top_k < len(scaled)
    kept = _top_k(scaled, sampling.top_k) if is_cut else Candidates(_softmax(scaled))
    if sampling.top_p < 1.0:
        kept = kept.keep(nucleus_threshold(kept.weights, sampling.top_p))
    if sampling.min_p > 0.0:
        kept = kept.keep(kept.weights.max() * np.float32(sampling.min_p))
    return kept


def nucleus_threshold(weights: Floats, top_p: float) -> np.float32:
    """Smallest weight in the nucleus: the fewest of the largest weights that hold a share top_p."""
    quanta = quantize(weights)
    wanted = math.ceil(top_p * float(quanta.sum()))
    if len(weights) <= _FEW:
        return _threshold_by_sorting(weights, wanted)
    floor = floor_of_largest(weights, _NUCLEUS_GUESS)
    guessed = weights[weights >= floor]
    if int(quantize(guessed).sum()) < wanted:
        return _threshold_by_counting(weights, quanta, wanted)
    return _threshold_by_sorting(guessed, wanted)


def _top_k(scaled: Floats, k: int) -> Candidates:
    token_ids = np.flatnonzero(scaled >= floor_of_largest(scaled, k) - _TIE)
    weights = np.exp(scaled[token_ids])
    threshold = np.partition(weights, len(weights) - k)[len(weights) - k]
    kept = Candidates(weights, token_ids).keep(threshold)
    return Candidates(kept.weights / kept.weights.sum(), kept.token_ids)


def _softmax(scaled: Floats) -> Floats:
    weights: Floats = np.exp(scaled, out=scaled)
    weights /= weights.sum()
    return weights


def _threshold_by_sorting(weights: Floats, wanted: int) -> np.float32:
    falling = np.sort(weights)[::-1]
    place = int(np.searchsorted(quantize(falling).cumsum(), wanted))
    threshold: np.float32 = falling[min(place, len(falling) - 1)]
    return threshold


def _threshold_by_counting(weights: Floats, quanta: Quanta, wanted: int) -> np.float32:
    """The same for a nucleus of any width, by radix selection: sorting would cost more.

    Floats from 0 on are in the order of their bits. The upper half of the threshold's bits is found first, then the
    lower half among the weights that share the upper.
    """
    bits = weights.view(np.int32)
    upper = bits >> 16
    bin_, above = _bin_where_held(upper, quanta, wanted)
    here = upper == bin_
    last, _ = _bin_where_held(bits[here] & 0xFFFF, quanta[here], wanted - above)
    threshold: np.float32 = np.int32(bin_ << 16 | last).view(np.float32)
    return threshold


def _bin_where_held(bins: npt.NDArray[np.int32], quanta: Quanta, wanted: int) -> tuple[int, int]:
    """The highest bin that, with those above it, holds what is `wanted`, and what those above it hold."""
    # Counted in halves, each of which sums exactly in the float64 that numpy counts in.
    upper = np.bincount(bins, quanta >> _HALF_BITS)
    lower = np.bincount(bins, quanta & ((1 << _HALF_BITS) - 1))
    mass = (upper.astype(np.int64) << _HALF_BITS) + lower.astype(np.int64)
    held = mass[::-1].cumsum()
    place = min(int(np.searchsorted(held, wanted)), len(held) - 1)
    bin_ = len(held) - 1 - place
    return bin_, int(held[place] - mass[bin_])
