"""Stream: what one sequence has put out so far, and the deltas that its sink gets of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trierarch.python_backend.errors import Cancelled, DeadlineExceeded, ExecutorFailed, ServingError
from trierarch.python_backend.executors.executor import Sink
from trierarch.python_backend.executors.tensorrt_llm.llm import Completion, Generation
from trierarch.python_backend.executors.tensorrt_llm.logits import (
    LogitsAsked,
    PromptTold,
    check_likeliest,
    output_logprobs,
    read_output,
    read_prompt,
)
from trierarch.python_backend.executors.tensorrt_llm.sampling import is_likeliest_drawn
from trierarch.python_backend.executors.tensorrt_llm.usage import Times, usage_of
from trierarch.python_backend.request import FinishReason, Request, TokenDelta, TokenLogprob

logger = logging.getLogger(__name__)

_REASONS: Final = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "timeout": FinishReason.TIMEOUT,
    "cancelled": FinishReason.CANCELLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of an engine its streams go by."""

    block_size: int
    vocab_size: int
    gathers_logits: bool = False
    """Whether it keeps what tokens are drawn from."""


class Stream:
    """Of one sequence of a request; its last delta is its only one of that kind, whoever ends it.

    The executor's thread alone touches it, unless that hangs and another ends it.
    """

    def __init__(
        self,
        request: Request,
        index: int,
        end_ids: tuple[int, ...],
        sink: Sink,
        shape: Shape,
        on_end: Callable[[Stream], None],
    ) -> None:
        """`end_ids` end it and are not shown. `on_end` is called once, before the sink gets the last delta."""
        self.request = request
        self.index = index
        self.is_over = False
        self.generation: Generation | None = None
        """Of the library, once it has the request."""
        self.logits = LogitsAsked.of(request.sampling, index, shape.gathers_logits)
        self._end_ids = frozenset(end_ids)
        self._stop_words = [list(word) for word in request.sampling.stop_words]
        self._sink = sink
        self._shape = shape
        self._on_end = on_end
        self._lock = threading.Lock()
        self._token_ids: list[int] = []
        self._times = Times(arrival_ns=round(request.arrival_time * 1e9))
        self._prompt: PromptTold | None = None
        self._is_prompt_told = not self.logits.of_prompt
        sampling = request.sampling
        self._untold: dict[str, Any] = {
            "logprobs": None if sampling.logprobs is None else (),
            "generation_logits": () if sampling.return_generation_logits else None,
        }

    @property
    def num_tokens(self) -> int:
        """Of the output."""
        return len(self._token_ids)

    @property
    def sent_ns(self) -> int:
        """When the library got it; 0 is not yet."""
        return self._times.sent_ns

    def start(self, generation: Generation) -> None:
        """The library has it; again, where it was sent again."""
        self.generation = generation
        self._times.sent_ns = time.monotonic_ns()

    def awaits_prompt(self, step: Generation) -> bool:
        """Whether a step brings what `read_prompt` is to read."""
        return not self._is_prompt_told and self._prompt is None and step.context_logits is not None

    def read_prompt(self, step: Generation) -> None:
        """Work out what is told of the prompt, for the next delta. Any thread: a long prompt would hold up others.

        Raises:
            ExecutorFailed: it is not the whole prompt.
        """
        self._prompt = read_prompt(self.request, step.context_logits, self._shape.vocab_size)

    def take(self, step: Generation) -> None:
        """Pass on what a step brought, and end with it where it was the last, or an end token or a stop word came.

        Raises:
            ExecutorFailed: the library returned fewer log-probs or logits than tokens.
        """
        with self._lock:
            if not self.is_over:
                self._take(step)

    def end(self, reason: FinishReason, error: ServingError) -> None:
        """End it early; nothing happens if it is over."""
        with self._lock:
            if not self.is_over:
                self._finish(reason, error)

    def _take(self, step: Generation) -> None:
        completion = step.outputs[0]
        first = self.num_tokens
        drawn = completion.token_ids[first:]
        reason = self._read(drawn)
        token_ids = tuple(self._token_ids[first:])
        if token_ids:
            self._times.draw()
        if reason is None and step.finished:
            reason = _REASONS.get(completion.finish_reason or "", FinishReason.ERROR)
        if reason is None and not token_ids:
            return
        error = None if reason is None else _error_of(reason, completion.finish_reason)
        told = {} if error is not None and not token_ids else self._told(completion, first, len(drawn), token_ids)
        if reason is None:
            self._emit(token_ids, told)
        else:
            self._finish(reason, error, token_ids, told, step)

    def _read(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Take new tokens, up to what ends the sequence; some libraries pass end tokens on, and some keep them."""
        for token in token_ids:
            if token in self._end_ids:
                return FinishReason.STOP
            self._token_ids.append(token)
            if any(self._token_ids[-len(word) :] == word for word in self._stop_words):
                return FinishReason.STOP
        return None

    def _told(self, completion: Completion, first: int, num_drawn: int, token_ids: tuple[int, ...]) -> dict[str, Any]:
        """Fields of a delta beside its tokens, as far as they were asked for."""
        sampling, told = self.request.sampling, self._prompt_told()
        if not self.logits.of_output:
            if sampling.logprobs is not None:
                told["logprobs"] = self._logprobs(completion.logprobs, first)
            return told
        rows = read_output(completion.generation_logits, num_drawn, len(token_ids), self._shape.vocab_size)
        if is_likeliest_drawn(sampling):
            check_likeliest(rows, token_ids)
        if sampling.return_generation_logits:
            told["generation_logits"] = tuple(rows)
        if sampling.logprobs is not None:
            told["logprobs"] = output_logprobs(rows, token_ids, sampling.logprobs)
        return told

    def _prompt_told(self) -> dict[str, Any]:
        """Fields of the first delta alone."""
        if self._is_prompt_told:
            return {}
        prompt, self._prompt = self._prompt, None
        if prompt is None:
            raise ExecutorFailed("TensorRT-LLM returned no logits of the prompt")
        self._is_prompt_told = True
        return {"prompt_logprobs": prompt.logprobs, "context_logits": prompt.logits}

    def _logprobs(self, entries: Sequence[Any] | None, first: int) -> tuple[TokenLogprob, ...]:
        """The library's own."""
        count = self.request.sampling.logprobs or 0
        entries = entries or ()
        if len(entries) < self.num_tokens:
            raise ExecutorFailed(f"TensorRT-LLM returned {len(entries)} log-probs for {self.num_tokens} tokens")
        return tuple(_logprob(self._token_ids[place], entries[place], count) for place in range(first, self.num_tokens))

    def _finish(
        self,
        reason: FinishReason,
        error: ServingError | None,
        token_ids: tuple[int, ...] = (),
        told: Mapping[str, Any] | None = None,
        step: Generation | None = None,
    ) -> None:
        self.is_over = True
        self._on_end(self)
        usage = usage_of(self.request, self.num_tokens, self._times, step, self._shape.block_size)
        self._emit(token_ids, told or {}, finish_reason=reason, error=error, usage=usage)

    def _emit(self, token_ids: tuple[int, ...], told: Mapping[str, Any], **fields: Any) -> None:
        fields |= {**self._untold, **told}
        delta = TokenDelta(request_id=self.request.request_id, index=self.index, token_ids=token_ids, **fields)
        try:
            self._sink(delta)
        except Exception:  # It must not raise; one that does loses its own delta and nobody else's.
            logger.exception("request %s: its sink failed", self.request.request_id)


def _logprob(token: int, entry: Any, count: int) -> TokenLogprob:
    """Of a drawn token: {token id: object with `logprob`} with the likeliest tokens and it, or its number alone."""
    if not isinstance(entry, Mapping):
        return TokenLogprob(token, float(entry))
    if token not in entry:
        raise ExecutorFailed(f"TensorRT-LLM returned no log-prob of token {token}, which it drew")
    ranked = sorted(((other, float(value.logprob)) for other, value in entry.items()), key=lambda pair: -pair[1])
    return TokenLogprob(token, float(entry[token].logprob), tuple(ranked[:count]))


def _error_of(reason: FinishReason, said: str | None) -> ServingError | None:
    """What goes with a reason that the library itself gave, as `said`."""
    if reason is FinishReason.ERROR:
        return ExecutorFailed(f"TensorRT-LLM ended the request with finish_reason {said!r}")
    if reason is FinishReason.CANCELLED:
        return Cancelled("TensorRT-LLM cancelled the request")
    if reason is FinishReason.TIMEOUT:
        return DeadlineExceeded("TensorRT-LLM found no time for the request")
    return None
