"""Answer: one Triton request from its parsed rows to its last response."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from trierarch.python_backend.errors import Cancelled, InvalidRequest
from trierarch.python_backend.text.text_request import TextDelta
from trierarch.python_backend.triton.channel import Channel
from trierarch.python_backend.triton.metrics import EngineMetrics
from trierarch.python_backend.triton.request_parser import Row
from trierarch.python_backend.triton.running_row import Generator, RunningRow


class Answer:
    """Submits a request's rows and sends what comes back. Ends once: with a last piece, an error, or a stop.

    Three threads meet here: Triton's, which starts and stops; the text layer's, which delivers; the watch's, which
    cancels. Whoever ends the answer first wins; the channel drops whatever the others still send.
    """

    def __init__(
        self,
        client_id: str,
        rows: Sequence[Row],
        channel: Channel,
        generator: Generator,
        metrics: EngineMetrics,
        on_end: Callable[[Answer], None],
    ) -> None:
        """`on_end` is called once, when the last response is out."""
        self._client_id = client_id
        self._rows = [RunningRow(row) for row in rows]
        self._channel = channel
        self._generator = generator
        self._metrics = metrics
        self._on_end = on_end
        self._num_unfinished = sum(row.request.sampling.n for row in rows)
        self._lock = threading.Lock()
        self._has_begun = False
        self._is_over = False

    @property
    def client_id(self) -> str:
        """See Cancellable."""
        return self._client_id

    def start(self) -> None:
        """Submit the rows; whatever a row is refused for ends the whole request."""
        for row in self._rows:
            try:
                row.submit(self._generator, self._deliver)
            except InvalidRequest as error:
                self._end(row.client_named(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
                self._end(error)
            if self._is_over:
                self._abort_rows()  # the end may have come from another thread, before this row was in
                return

    @property
    def has_begun(self) -> bool:
        """See Cancellable."""
        return self._has_begun

    def is_cancelled(self) -> bool:
        """See Cancellable."""
        return self._channel.is_cancelled()

    def cancel(self) -> None:
        """See Cancellable."""
        self._end(Cancelled("the client cancelled the request"))

    def stop(self) -> None:
        """See Cancellable."""
        self._end(None)

    def _deliver(self, row: RunningRow, delta: TextDelta) -> None:
        self._has_begun = True
        if delta.error is not None:
            self._end(row.client_named(delta.error) if isinstance(delta.error, InvalidRequest) else delta.error)
            return
        try:
            self._pass_on(row, delta)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            self._end(error)

    def _pass_on(self, row: RunningRow, delta: TextDelta) -> None:
        if (usage := row.usage(delta)) is not None:
            self._metrics.observe_sequence(usage)
        response = row.add(delta)
        self._num_unfinished -= delta.finish_reason is not None
        is_final = self._num_unfinished == 0
        if response is not None:
            self._channel.send(response, is_final)
        for seconds in row.inter_token_seconds(delta):
            self._metrics.observe_inter_token(seconds)
        if is_final and self._take_end():
            self._on_end(self)

    def _end(self, error: Exception | None) -> None:
        """End early: with an error, or with an empty response where the client itself asked to stop."""
        if not self._take_end():
            return
        if error is None:
            self._channel.send([], is_final=True)
        else:
            self._channel.fail(error)
        self._abort_rows()
        self._on_end(self)

    def _take_end(self) -> bool:
        """Whether the caller is the first to end the answer."""
        with self._lock:
            was_over, self._is_over = self._is_over, True
            return not was_over

    def _abort_rows(self) -> None:
        for row in self._rows:
            self._generator.abort(row.request_id)
