"""Beam and FinishedBeam: the answers that a search weighs against each other."""

from __future__ import annotations

from dataclasses import dataclass

from trierarch.python_backend.request import FinishReason, TokenLogprob


@dataclass(frozen=True, slots=True)
class Beam:
    """Tokens that may become an answer."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`."""
    cum_logprob: float = 0.0

    def followed_by(self, logprob: TokenLogprob) -> Beam:
        """The beam with one token more."""
        return Beam((*self.token_ids, logprob.token_id), (*self.logprobs, logprob), self.cum_logprob + logprob.logprob)


@dataclass(frozen=True, slots=True)
class FinishedBeam:
    """A beam that has come to an end."""

    token_ids: tuple[int, ...]
    """Without the end token, if one ended it."""
    logprobs: tuple[TokenLogprob, ...]
    """One for each of `token_ids`."""
    cum_logprob: float
    """Of all tokens, the end token too."""
    score: float
    """What it ranks by."""
    finish_reason: FinishReason
