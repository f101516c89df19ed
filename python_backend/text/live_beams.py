"""LiveBeams: a request whose beams are searched, step by step, above any executor.

Each step asks the executor for one token after each living beam, with the log-probs of the likeliest ones; keys and
values that beams share are found in the prefix cache. The executor knows nothing of beams, so they go with whatever it
does: batching, adapters, salts, preemption. A guide, a bias and penalties are the executor's to apply; it is told then which
tokens are the answer's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from trierarch.python_backend.beams.beam import Beam
from trierarch.python_backend.beams.search import BeamSearch
from trierarch.python_backend.errors import Cancelled, ExecutorFailed, InvalidRequest, ServingError
from trierarch.python_backend.executors.executor import Executor, Sink
from trierarch.python_backend.request import (
    FinishReason,
    Request,
    SamplingParams,
    SpeculationParams,
    TokenDelta,
    TokenLogprob,
    Usage,
)
from trierarch.python_backend.text.output_stream import OutputStream
from trierarch.python_backend.text.text_request import TextDelta

logger = logging.getLogger(__name__)


class LiveBeams:
    """One search. Submitted on the caller's thread, driven by the output thread, aborted by any.

    Nothing is shown before it is over: until then any beam may be given up for another. Each answer is one delta.
    """

    def __init__(
        self,
        request: Request,
        search: BeamSearch,
        executor: Executor,
        sink: Callable[[TextDelta], None],
        new_stream: Callable[[], OutputStream],
    ) -> None:
        """`request` is the whole of what was asked; `new_stream` makes the text of one answer."""
        self.is_over = False
        self._request = request
        self._search = search
        self._executor = executor
        self._sink = sink
        self._new_stream = new_stream
        self._deliver: Sink = lambda _: None
        self._lock = threading.Lock()
        self._is_aborted = False
        self._places: dict[str, int] = {}  # executor's id -> place of its beam: what the step under way still owes
        self._num_asked = 0
        # The output thread's own:
        self._heard: dict[int, TokenLogprob] = {}  # place of a beam -> candidates for its next token
        self._usage: Usage | None = None
        self._prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
        self._failure: tuple[FinishReason, ServingError] | None = None

    @property
    def request_id(self) -> str:
        """The whole request's."""
        return self._request.request_id

    def submit(self, deliver: Sink) -> None:
        """Ask for the first token. `deliver` takes deltas to the output thread, for `push`.

        Raises:
            ServingError: see Executor.submit.
        """
        self._deliver = deliver
        self._ask()

    def abort(self) -> None:
        """End it with CANCELLED soon; nothing happens if it is over."""
        with self._lock:
            self._is_aborted = True
            self._abort_step()

    def push(self, delta: TokenDelta, tokens_per_response: int) -> bool:
        """Take a delta of the step under way; its last starts the next step, or sends the answers. Never True."""
        if delta.logprobs:
            self._heard[self._places[delta.request_id]] = delta.logprobs[0]
        self._prompt_logprobs = delta.prompt_logprobs or self._prompt_logprobs
        if delta.finish_reason is None:
            return False
        if delta.usage is not None:
            self._usage = delta.usage if self._usage is None else _together(self._usage, delta.usage)
        with self._lock:
            del self._places[delta.request_id]
            if delta.error is not None and self._failure is None:
                self._failure = delta.finish_reason, delta.error
                self._abort_step()
            is_waiting = bool(self._places)
        if not is_waiting:
            self._go_on()
        return False

    def _go_on(self) -> None:
        try:
            if self._failure is None:
                self._search.advance([self._heard.get(place) for place in range(len(self._search.beams))])
                self._heard.clear()
            if self._failure is None and not self._search.is_over:
                self._ask()
            else:
                self._end()
        except Cancelled as error:
            self._fail(FinishReason.CANCELLED, error)
        except ServingError as error:
            self._fail(FinishReason.ERROR, error)
        except Exception:
            logger.exception("request %s: its beams were lost", self.request_id)
            self._fail(FinishReason.ERROR, ExecutorFailed("the beam search failed; see the server's log"))

    def _ask(self) -> None:
        """Ask for the next token of each beam. Where one is refused, those before it are aborted."""
        with self._lock:
            if self._is_aborted:
                raise Cancelled(f"request {self.request_id!r} was cancelled")
            for place, beam in enumerate(self._search.beams):
                step = self._step(beam)
                self._places[step.request_id] = place
                try:
                    self._executor.submit(step, self._deliver)
                except BaseException:
                    del self._places[step.request_id]
                    self._abort_step()
                    raise
                self._num_asked += 1

    def _step(self, beam: Beam) -> Request:
        request = self._request
        is_first = self._num_asked == 0
        step = replace(
            request,
            request_id=f"{self.request_id}/{self._num_asked}",
            speculation=SpeculationParams(max_draft_tokens=0),
            is_continuation=not is_first,
        )
        if not request.sampling.reweighs:
            sampling = SamplingParams(
                max_tokens=1,
                temperature=0.0,
                end_ids=(),  # an end token is a candidate like any other
                logprobs=self._search.num_candidates,
                prompt_logprobs=request.sampling.prompt_logprobs if is_first else None,
            )
            return replace(step, prompt_token_ids=(*request.prompt_token_ids, *beam.token_ids), sampling=sampling)
        return replace(step, answer_so_far=beam.token_ids, sampling=self._edited(len(beam.token_ids) + 1))

    def _edited(self, num_tokens: int) -> SamplingParams:
        """What asks for candidates as guide, bias and penalties leave them, for the answer's token of that number."""
        sampling = self._request.sampling
        return replace(
            sampling,
            n=1,
            max_tokens=num_tokens,
            min_tokens=min(sampling.min_tokens, num_tokens),
            temperature=0.0,
            logprobs=self._search.num_candidates,
            prompt_logprobs=sampling.prompt_logprobs if num_tokens == 1 else None,
            edited_logprobs=True,
        )

    def _abort_step(self) -> None:
        for request_id in self._places:
            self._executor.abort(request_id)

    def _fail(self, reason: FinishReason, error: ServingError) -> None:
        self._failure = self._failure or (reason, error)
        if not self._places:  # the others of the step have still to end
            self._end()

    def _end(self) -> None:
        self.is_over = True
        for delta in self._answers():
            try:
                self._sink(delta)
            except Exception:
                logger.exception("request %s: its sink failed", self.request_id)
                return

    def _answers(self) -> list[TextDelta]:
        wanted = range(self._request.sampling.n)
        num_found = len(self._search.finished)
        if self._failure is None and num_found < len(wanted):
            remedy = f"of those that are allowed {num_found} were found; ask for no more, or leave more tokens to draw"
            self._failure = FinishReason.ERROR, InvalidRequest("number of answers", len(wanted), remedy)
        if self._failure is not None:
            reason, error = self._failure
            return [
                TextDelta(
                    request_id=self.request_id,
                    index=index,
                    text="",
                    finish_reason=reason,
                    error=error,
                    usage=self._usage,
                )
                for index in wanted
            ]
        return [self._answer(index) for index in wanted]

    def _answer(self, index: int) -> TextDelta:
        beam = self._search.finished[index]
        assert self._usage is not None
        shown = self._new_stream().push(
            TokenDelta(
                request_id=self.request_id,
                index=index,
                token_ids=beam.token_ids,
                logprobs=beam.logprobs if self._request.sampling.logprobs is not None else None,
                prompt_logprobs=self._prompt_logprobs if index == 0 else None,
                finish_reason=beam.finish_reason,
                usage=replace(self._usage, num_output_tokens=len(beam.token_ids)),
            )
        )
        assert shown is not None
        return replace(shown, cum_logprob=beam.cum_logprob)


def _together(usage: Usage, step: Usage) -> Usage:
    """`usage` of the steps so far, and one step more."""
    return replace(
        usage,
        last_token_ns=max(usage.last_token_ns, step.last_token_ns),
        num_new_blocks=usage.num_new_blocks + step.num_new_blocks,
        num_preemptions=usage.num_preemptions + step.num_preemptions,
    )
