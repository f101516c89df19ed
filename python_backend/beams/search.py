"""BeamSearch: which beams go on, which have finished, and when to stop looking.

transformers' semantics (`generate(num_beams=...)`, 5.23), with TensorRT-LLM's diversity rate. TensorRT-LLM ranks finished
beams alike; docs/decisions/0009 tells where its search differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter

from trierarch.python_backend.beams.beam import Beam, FinishedBeam
from trierarch.python_backend.beams.params import BeamParams, EarlyStopping
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import MAX_LOGPROBS, FinishReason, SamplingParams, TokenLogprob


class BeamSearch:
    """A state machine: candidates in, next beams out. Knows no model and no executor.

    Of `sampling` it honours max_tokens, min_tokens, bad words, stop words and log-probs; guide, bias and penalties are in the
    candidates that it is given. Nothing is drawn, so what says how to draw (temperature, top_k, top_p, min_p, seed) changes
    nothing.
    """

    def __init__(
        self,
        params: BeamParams,
        sampling: SamplingParams,
        end_ids: frozenset[int],
        prompt_token_ids: tuple[int, ...] = (),
        is_stopped: Callable[[tuple[int, ...]], bool] | None = None,
    ) -> None:
        """`is_stopped` tells of an answer's tokens whether they end it, besides `end_ids` and the stop words.

        Raises:
            InvalidRequest: a step cannot list as many candidates as the words and end tokens call for.
        """
        self.beams: tuple[Beam, ...] = (Beam(),)
        """Those that live, the likeliest first: each wants a next token."""
        self._params = params
        self._sampling = sampling
        self._end_ids = end_ids
        self._prompt_token_ids = prompt_token_ids
        self._is_stopped = is_stopped
        self._finished: list[FinishedBeam] = []
        self.num_candidates = self._count_candidates()
        """Likeliest tokens that each beam's next step must list: as many as there are beams, and all that may not go on."""

    @property
    def is_over(self) -> bool:
        """Whether no beam wants a further token."""
        return not self.beams

    @property
    def finished(self) -> tuple[FinishedBeam, ...]:
        """Those that have finished, the best first; `width` of them once it is over."""
        return tuple(self._finished)

    def advance(self, steps: Sequence[TokenLogprob | None]) -> None:
        """Take the next token's likeliest candidates of each beam, in `beams`' order.

        steps: `top` lists at least `num_candidates` tokens (or all that may follow), the likeliest first. None where the
        beam's guide says that it is complete.
        """
        width = self._params.width
        living: list[Beam] = []
        ended: list[FinishedBeam] = []
        for place, (beam, is_complete) in enumerate(self._ranked(steps)):
            reason = FinishReason.STOP if is_complete else self._end_of(beam)
            if reason is None:
                living.append(beam)
            elif place < width:  # The others only make sure that enough of them go on.
                ended.append(self._finish(beam, reason))
            if place + 1 >= width and len(living) == width:
                break
        self._finished = sorted([*self._finished, *ended], key=attrgetter("score"), reverse=True)[:width]
        self.beams = () if self._is_decided(living) else tuple(living)

    def _count_candidates(self) -> int:
        sampling, width = self._sampling, self._params.width
        # Where the candidates come edited, the bad words have been taken out already.
        bad_words = () if sampling.reweighs else sampling.bad_words
        barred = {*self._end_ids, *(word[-1] for word in (*sampling.stop_words, *bad_words))}
        if width + len(barred) > MAX_LOGPROBS:
            raise InvalidRequest(
                "beam_width",
                width,
                f"with {len(barred)} tokens that may end an answer or are banned it must be at most "
                f"{max(1, MAX_LOGPROBS - len(barred))}; ask for fewer beams, or name fewer bad and stop words",
            )
        return max(2 * width, width + len(barred), sampling.logprobs or 0)

    def _ranked(self, steps: Sequence[TokenLogprob | None]) -> Iterator[tuple[Beam, bool]]:
        """The beams that may follow, and whether they are complete; the best first, of equals the better beam's likelier one."""
        rate, num_shown = self._params.diversity_rate, self._sampling.logprobs or 0
        candidates: list[tuple[float, int, TokenLogprob | None]] = []
        for index, (beam, step) in enumerate(zip(self.beams, steps, strict=True)):
            so_far = beam.cum_logprob + rate * index
            if step is None:
                candidates.append((so_far, index, None))
                continue
            rivals = step.top[:num_shown]
            candidates += (
                (so_far + logprob, index, TokenLogprob(token_id, logprob, rivals))
                for token_id, logprob in self._allowed(beam, step.top)
            )
        candidates.sort(key=lambda candidate: -candidate[0])
        for _, index, token in candidates:
            beam = self.beams[index]
            yield (beam, True) if token is None else (beam.followed_by(token), False)

    def _allowed(self, beam: Beam, top: Iterable[tuple[int, float]]) -> Iterator[tuple[int, float]]:
        sampling = self._sampling
        barred: set[int] = set()
        if sampling.bad_words:
            barred |= _completions(sampling.bad_words, (*self._prompt_token_ids, *beam.token_ids))
        if len(beam.token_ids) < sampling.min_tokens:
            barred |= self._end_ids | _completions(sampling.stop_words, beam.token_ids)
        return (candidate for candidate in top if candidate[0] not in barred)

    def _end_of(self, beam: Beam) -> FinishReason | None:
        token_ids = beam.token_ids
        if token_ids[-1] in self._end_ids:
            return FinishReason.STOP
        if len(token_ids) > self._sampling.min_tokens and any(
            token_ids[-len(word) :] == word for word in self._sampling.stop_words
        ):
            return FinishReason.STOP
        if self._is_stopped is not None and self._is_stopped(token_ids):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(token_ids) >= self._sampling.max_tokens else None

    def _finish(self, beam: Beam, reason: FinishReason) -> FinishedBeam:
        num_shown = len(beam.token_ids) - (beam.token_ids[-1] in self._end_ids)
        return FinishedBeam(
            token_ids=beam.token_ids[:num_shown],
            logprobs=beam.logprobs[:num_shown],
            cum_logprob=beam.cum_logprob,
            score=self._score(beam.cum_logprob, len(beam.token_ids)),
            finish_reason=reason,
        )

    def _score(self, cum_logprob: float, num_tokens: int) -> float:
        return cum_logprob / math.pow(num_tokens, self._params.length_penalty)

    def _is_decided(self, living: list[Beam]) -> bool:
        """Whether nothing that `living` may become is wanted any more."""
        if not living:
            return True
        if len(self._finished) < self._params.width:
            return False
        if self._params.early_stopping is EarlyStopping.FULL:
            return True
        num_tokens = len(living[0].token_ids)
        if self._params.early_stopping is EarlyStopping.NEVER and self._params.length_penalty > 0.0:
            num_tokens = self._sampling.max_tokens
        best = max(beam.cum_logprob for beam in living)
        return self._score(best, num_tokens) <= self._finished[-1].score


def _completions(words: Iterable[tuple[int, ...]], token_ids: tuple[int, ...]) -> set[int]:
    """The last tokens of those `words` whose other tokens are just what `token_ids` ends with."""
    return {word[-1] for word in words if len(word) == 1 or token_ids[1 - len(word) :] == word[:-1]}
