"""Each row's likeliest token, by numpy: several times as fast as torch on a CPU."""

from __future__ import annotations

import numpy as np

from trierarch.python_backend.executors.sampling.token_history import Floats


def peaks(logits: Floats) -> tuple[list[int], list[bool]]:
    """See Sampler._peaks. logits: (n, vocab)."""
    best = logits.argmax(1)  # takes NaN for the largest, and the first of equals
    largest = np.take_along_axis(logits, best[:, None], 1)[:, 0]
    return best.tolist(), np.isfinite(largest).tolist()
