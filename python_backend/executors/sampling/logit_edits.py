"""LogitEdits: what a batch's rules change, as flat arrays that any kind of array can be edited by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trierarch.python_backend.executors.sampling.token_history import Floats, Ids, TokenHistory
from trierarch.python_backend.request import SamplingParams

Bits = npt.NDArray[np.uint8]

MOST: Final = 1e30
"""Any finite parameter a client may send is cut to this, so that no sum or product makes a NaN."""


@dataclass(frozen=True, slots=True)
class Masks:
    """Tokens that guides leave; the logits of all others become -inf."""

    rows: Ids  # (m)
    bits: Bits  # (m, ceil(vocab / 8)): token t is bit t % 8 of byte t // 8, the lowest first

    @classmethod
    def build(cls, rows: Rows[int], allowed: Rows[bytes]) -> Masks:
        """allowed: for each of `rows`, as Context.allowed."""
        bits = np.frombuffer(bytearray().join(allowed), dtype=np.uint8).reshape(len(rows), -1)
        return cls(np.asarray(rows, dtype=np.int64), bits)


@dataclass(frozen=True, slots=True)
class Bias:
    """Added to logits; -inf bans a token. (m) each, no place twice."""

    rows: Ids
    token_ids: Ids
    values: Floats

    @classmethod
    def build(cls, rows: Rows[int], biases: Rows[tuple[Ids, Floats]]) -> Bias:
        """biases: for each of `rows`, as `bias_arrays` returns it."""
        ids = [ids for ids, _ in biases]
        return cls(_spread(rows, ids), np.concatenate(ids), np.concatenate([values for _, values in biases]))


@dataclass(frozen=True, slots=True)
class Penalties:
    """For tokens that were said before: repetition (CTRL, arXiv 1909.05858), then presence and frequency.

    With s the logit: s / repetition where s > 0, else s * repetition, cut to MOST; then less presence where the count
    is above 0, less frequency * count. (m) each, no place twice.
    """

    rows: Ids
    token_ids: Ids
    repetition: Floats
    presence: Floats
    frequency: Floats
    counts: Floats

    @classmethod
    def build(cls, rows: Rows[int], samplings: Rows[SamplingParams], histories: Rows[TokenHistory]) -> Penalties:
        """samplings, histories: one for each of `rows`."""
        ids = [history.token_ids for history in histories]
        lengths = [len(each) for each in ids]

        def spread(values: Iterable[float]) -> Floats:
            cut = np.clip(np.fromiter(values, dtype=np.float64), -MOST, MOST).astype(np.float32)
            return np.repeat(cut, lengths)

        return cls(
            rows=_spread(rows, ids),
            token_ids=np.concatenate(ids),
            repetition=spread(max(sampling.repetition_penalty, 1 / MOST) for sampling in samplings),
            presence=spread(sampling.presence_penalty for sampling in samplings),
            frequency=spread(sampling.frequency_penalty for sampling in samplings),
            counts=np.concatenate([history.counts for history in histories]),
        )


@dataclass(frozen=True, slots=True)
class Bans:
    """Tokens whose logits become -inf. (m) each."""

    rows: Ids
    token_ids: Ids


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """In the order in which they are made; None where no row asks for any."""

    masks: Masks | None
    bias: Bias | None
    penalties: Penalties | None
    bans: Bans | None


def bias_arrays(logit_bias: Mapping[int, float]) -> tuple[Ids, Floats]:
    """A bias as token ids and values, (m) each."""
    ids = np.fromiter(logit_bias, dtype=np.int64, count=len(logit_bias))
    values = np.fromiter(logit_bias.values(), dtype=np.float64, count=len(logit_bias))
    # Banning must stay banning: -inf is not cut.
    return ids, np.where(np.isneginf(values), values, np.clip(values, -MOST, MOST)).astype(np.float32)


def _spread(rows: Rows[int], ids: Rows[Ids]) -> Ids:
    """The row of every token of `ids`."""
    return np.repeat(np.asarray(rows, dtype=np.int64), [len(each) for each in ids])
