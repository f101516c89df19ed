"""The largest of many numbers, without sorting or parting them all."""

from __future__ import annotations

from typing import Final

import numpy as np

from trierarch.python_backend.executors.sampling.token_history import Floats, Ids

_NUM_GROUPS: Final = 1024


def floor_of_largest(values: Floats, k: int) -> np.float32:
    """A number that at least k of `values` (m) reach, and few more do: k is from 1 to m.

    It is the k-th largest of the maxima of some groups. NaN where one of `values` is.
    """
    num_groups = max(_NUM_GROUPS, 4 * k)
    if len(values) < 4 * num_groups:
        return _kth_largest(values, k)
    whole = len(values) // num_groups * num_groups
    # Elements of a group stand apart, not side by side: so maxima are taken of whole vectors.
    return _kth_largest(values[:whole].reshape(-1, num_groups).max(0), k)


def largest(values: Floats, k: int) -> Ids:
    """Places of the k largest of `values` (m), falling; of equals the first place comes first. (min(k, m))"""
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    places = np.flatnonzero(values >= floor_of_largest(values, min(k, len(values))))
    if len(places) < k:  # some are NaN
        places = np.arange(len(values))
    order: Ids = places[np.argsort(-values[places], kind="stable")[:k]]
    return order


def _kth_largest(values: Floats, k: int) -> np.float32:
    place = len(values) - k
    kth: np.float32 = np.partition(values, place)[place]
    return kth
