"""TokenHistory: what a sequence has said so far, as penalties count it."""

from __future__ import annotations

from copy import copy

import numpy as np
import numpy.typing as npt

from trierarch.python_backend.sequence import Context

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


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
