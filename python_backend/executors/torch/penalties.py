"""Logit bias and the repetition, presence and frequency penalties, applied to the tokens they concern alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Rows
from copy import copy
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from trierarch.python_backend.request import SamplingParams
from trierarch.python_backend.sequence import Context

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Any finite parameter a client may send is cut to this, so that no sum or product below makes a NaN.
_MOST: Final = 1e30


def has_penalties(sampling: SamplingParams) -> bool:
    """Whether what the sequence has said so far changes its next logits."""
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


class TokenHistory:
    """The distinct tokens of one sequence, and how often each is in its output. Grows as the sequence does."""

    def __init__(self, sequence: Context) -> None:
        prompt = np.unique(np.asarray(sequence.request.prompt_token_ids, dtype=np.int64))
        self._token_ids: Ids = prompt
        self._counts: Floats = np.zeros(len(prompt), dtype=np.float32)
        self._place: dict[int, int] = {token: place for place, token in enumerate(prompt.tolist())}
        self._num_counted = sequence.num_prompt_tokens

    def copy(self) -> TokenHistory:
        """Another history that starts where this one stands."""
        twin = copy(self)
        twin._place = dict(self._place)
        twin._token_ids, twin._counts = self._token_ids.copy(), self._counts.copy()
        return twin

    def update(self, sequence: Context) -> None:
        """Count the output tokens that came since the last call."""
        token_ids = sequence.token_ids
        for token in token_ids[self._num_counted :]:
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._token_ids):
                self._grow()
            self._token_ids[place] = token
            self._counts[place] += 1
        self._num_counted = len(token_ids)

    @property
    def token_ids(self) -> Ids:
        """Distinct tokens of prompt and output, each once. (m)"""
        return self._token_ids[: len(self._place)]

    @property
    def counts(self) -> Floats:
        """How often each of `token_ids` is in the output; 0 for those of the prompt alone. (m)"""
        return self._counts[: len(self._place)]

    def _grow(self) -> None:
        capacity = max(64, 2 * len(self._token_ids))
        self._token_ids = np.resize(self._token_ids, capacity)
        self._counts = np.concatenate([self._counts, np.zeros(capacity - len(self._counts), dtype=np.float32)])


def add_bias(logits: torch.Tensor, rows: Rows[int], biases: Rows[tuple[Ids, Floats]]) -> None:
    """Add each row's sparse bias, in place.

    logits: (n, vocab). biases: for each of `rows`, token ids and what is added to their logits; -inf bans a token.
    """
    at = _places(rows, [ids for ids, _ in biases], logits.device)
    logits[at] += _tensor(np.concatenate([values for _, values in biases]), logits.device)


def penalize(
    logits: torch.Tensor, rows: Rows[int], samplings: Rows[SamplingParams], histories: Rows[TokenHistory]
) -> None:
    """Apply each row's penalties, in place: repetition (CTRL, arXiv 1909.05858), then presence and frequency.

    logits: (n, vocab). samplings, histories: one for each of `rows`.
    """
    at = _places(rows, [history.token_ids for history in histories], logits.device)
    lengths = [len(history.token_ids) for history in histories]

    def spread(values: Iterable[float]) -> torch.Tensor:
        cut = np.clip(np.fromiter(values, dtype=np.float64), -_MOST, _MOST).astype(np.float32)
        return _tensor(np.repeat(cut, lengths), logits.device)

    repetition = spread(max(sampling.repetition_penalty, 1 / _MOST) for sampling in samplings)
    presence = spread(sampling.presence_penalty for sampling in samplings)
    frequency = spread(sampling.frequency_penalty for sampling in samplings)
    counts = _tensor(np.concatenate([history.counts for history in histories]), logits.device)
    seen = logits[at]
    # Dividing by next to nothing may overflow, and infinity less infinity would be NaN.
    seen = torch.where(seen > 0, seen / repetition, seen * repetition).clamp(max=_MOST)
    logits[at] = seen - presence * (counts > 0) - frequency * counts


def bias_arrays(logit_bias: Mapping[int, float]) -> tuple[Ids, Floats]:
    """A bias as token ids and values, (m) each."""
    ids = np.fromiter(logit_bias, dtype=np.int64, count=len(logit_bias))
    values = np.fromiter(logit_bias.values(), dtype=np.float64, count=len(logit_bias))
    # Banning must stay banning: -inf is not cut.
    return ids, np.where(np.isneginf(values), values, np.clip(values, -_MOST, _MOST)).astype(np.float32)


def _places(rows: Rows[int], ids: Rows[Ids], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every token of `ids`; no place comes twice, since a row's tokens are distinct."""
    of_row = np.repeat(np.asarray(rows, dtype=np.int64), [len(each) for each in ids])
    return _tensor(of_row, device), _tensor(np.concatenate(ids), device)


def _tensor(array: Ids | Floats, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
