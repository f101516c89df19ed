"""Logit edits on tensors: only the places concerned are touched, and the rows that a guide holds."""

from __future__ import annotations

import math

import numpy as np
import torch

from trierarch.python_backend.executors.sampling.logit_edits import MOST, Bits, LogitEdits
from trierarch.python_backend.executors.sampling.token_history import Floats, Ids
from trierarch.python_backend.executors.torch.device import on_device


def edit_logits(logits: torch.Tensor, edits: LogitEdits) -> None:
    """Make `edits` in `logits` (n, vocab)."""

    def tensor(array: Ids | Floats | Bits) -> torch.Tensor:
        return on_device(torch.from_numpy(np.ascontiguousarray(array)), logits.device)

    if (masks := edits.masks) is not None:
        rows, bits = tensor(masks.rows), tensor(masks.bits)
        places = torch.arange(8, dtype=torch.uint8, device=logits.device)
        allowed = (bits[:, :, None] >> places & 1).flatten(1)[:, : logits.shape[1]].bool()
        logits[rows] = logits[rows].masked_fill(~allowed, -math.inf)
    if (bias := edits.bias) is not None:
        logits[tensor(bias.rows), tensor(bias.token_ids)] += tensor(bias.values)
    if (penalties := edits.penalties) is not None:
        at = tensor(penalties.rows), tensor(penalties.token_ids)
        repetition, counts = tensor(penalties.repetition), tensor(penalties.counts)
        seen = logits[at]
        # Dividing by next to nothing may overflow, and infinity less infinity would be NaN.
        seen = torch.where(seen > 0, seen / repetition, seen * repetition).clamp(max=MOST)
        logits[at] = seen - tensor(penalties.presence) * (counts > 0) - tensor(penalties.frequency) * counts
    if (bans := edits.bans) is not None:
        logits[tensor(bans.rows), tensor(bans.token_ids)] = -math.inf
