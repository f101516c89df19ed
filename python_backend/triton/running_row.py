"""RunningRow: one row of a request between its submission and its last delta."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import Usage
from trierarch.python_backend.text.text_request import TextDelta, TextRequest
from trierarch.python_backend.triton.beam_response import stack_beams
from trierarch.python_backend.triton.reply import Reply, ReplyOptions
from trierarch.python_backend.triton.request_parser import Row
from trierarch.python_backend.triton.responses import NamedArray, to_arrays


class Generator(Protocol):
    """What a row needs of a TextGenerator."""

    def submit(self, request: TextRequest, sink: Callable[[TextDelta], None]) -> tuple[int, ...]:
        """See TextGenerator.submit."""
        ...

    def abort(self, request_id: str) -> None:
        """See TextGenerator.abort."""
        ...


class RunningRow:
    """Gathers the deltas of a row's sequences. Deltas come on one thread; the submission is another's."""

    def __init__(self, row: Row) -> None:
        """Nothing is submitted yet."""
        self._row = row
        self._submitting = threading.Lock()
        self._replies: list[Reply] = []
        self._beams: list[list[NamedArray]] = []  # those that have come, where beams are searched
        self._num_beam_tokens = 0
        self._last_token_times: dict[int, float] = {}  # sequence index -> monotonic seconds

    @property
    def request_id(self) -> str:
        """The generator's id of the row."""
        return self._row.request.request_id

    @property
    def options(self) -> ReplyOptions:
        """How to tell the client."""
        return self._row.reply

    def client_named(self, error: InvalidRequest) -> InvalidRequest:
        """See Row.client_named."""
        return self._row.client_named(error)

    def submit(self, generator: Generator, deliver: Callable[[RunningRow, TextDelta], None]) -> None:
        """Hand the row to the generator; deltas wait for the prompt's token ids, which they may have to repeat.

        Raises:
            ServingError: see TextGenerator.submit.
        """
        request = self._row.request
        with self._submitting:
            prompt_token_ids = generator.submit(request, lambda delta: deliver(self, delta))
            prompt_text = request.prompt if isinstance(request.prompt, str) else ""
            self._replies = [
                Reply(self.options, index, prompt_token_ids, prompt_text) for index in range(request.sampling.n)
            ]

    def add(self, delta: TextDelta) -> list[NamedArray] | None:
        """Take a delta; the response that is to be sent now, if any. All beams share one."""
        with self._submitting:
            reply = self._replies[delta.index]
        piece = reply.add(delta)
        if piece is None:
            return None
        response = to_arrays(piece, self.options.outputs)
        if self._row.request.beams is None:
            return response
        self._beams.append(response)
        return stack_beams(self._beams) if len(self._beams) == len(self._replies) else None

    def usage(self, delta: TextDelta) -> Usage | None:
        """What a sequence cost, with its last delta; what all beams together cost, with the last of them."""
        if delta.usage is None or self._row.request.beams is None:
            return delta.usage
        self._num_beam_tokens += delta.usage.num_output_tokens
        is_last = delta.index == self._row.request.sampling.n - 1
        return replace(delta.usage, num_output_tokens=self._num_beam_tokens) if is_last else None

    def inter_token_seconds(self, delta: TextDelta) -> list[float]:
        """The time each token of a delta took since the one before it; none for a sequence's first."""
        if not delta.token_ids:
            return []
        now = time.monotonic()
        last = self._last_token_times.get(delta.index)
        self._last_token_times[delta.index] = now
        return [] if last is None else [(now - last) / len(delta.token_ids)] * len(delta.token_ids)
