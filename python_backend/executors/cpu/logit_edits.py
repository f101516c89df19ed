"""Logit edits on arrays: only the places concerned are touched, and the rows that a guide holds."""

from __future__ import annotations

import numpy as np

from trierarch.python_backend.executors.sampling.logit_edits import MOST, LogitEdits
from trierarch.python_backend.executors.sampling.token_history import Floats


def edit_logits(logits: Floats, edits: LogitEdits) -> None:
    """Make `edits` in `logits` (n, vocab)."""
    if (masks := edits.masks) is not None:
        allowed = np.unpackbits(masks.bits, axis=1, count=logits.shape[1], bitorder="little")
        logits[masks.rows] = np.where(allowed, logits[masks.rows], np.float32(-np.inf))
    if (bias := edits.bias) is not None:
        logits[bias.rows, bias.token_ids] += bias.values
    if (penalties := edits.penalties) is not None:
        at = penalties.rows, penalties.token_ids
        repetition, counts = penalties.repetition, penalties.counts
        seen = logits[at]
        with np.errstate(over="ignore"):
            # Dividing by next to nothing may overflow, and infinity less infinity would be NaN.
            seen = np.minimum(np.where(seen > 0, seen / repetition, seen * repetition), np.float32(MOST))
            logits[at] = seen - penalties.presence * (counts > 0) - penalties.frequency * counts
    if (bans := edits.bans) is not None:
        logits[bans.rows, bans.token_ids] = -np.inf
