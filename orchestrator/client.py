"""A small typed client of the text door: one gRPC stream a prompt, through tritonclient.

    client = TritonClient("localhost:8001")
    with client.stream(Prompt(text="Why is the sky blue?", max_tokens=64, chat=True)) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)

Streaming is the primitive; a whole answer is `join(stream)`.
"""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import triton_to_np_dtype

from trierarch.builder.errors import ResourceError, TrierarchError, UserError
from trierarch.orchestrator.prompt import Chunk, Completion, Prompt, join
from trierarch.python_backend.triton.status import TAG_ERRORS, untag

DEFAULT_URL: Final = "localhost:8001"
DEFAULT_MODEL: Final = "tensorrt_llm"
REFUSED: Final = frozenset({"INVALID_ARG", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "OUT_OF_RANGE"})
NEVER_CONNECTED: Final = ("failed to connect", "dns", "name resolution", "connection refused")
CUT_OFF: Final = ("socket closed", "stream removed", "connection reset", "goaway", "broken pipe")
"""gRPC's own words, in lower case, that tell UNAVAILABLE by the transport from UNAVAILABLE by the server."""


class RequestRefused(UserError):
    """The server will not do what was asked; the message is the server's."""


class ServerUnreachable(ResourceError):
    """Nothing answers at the address."""


class ServerBusy(ResourceError):
    """The queue is full or the server is stopping; the prompt may be sent again."""


class StreamBroken(ResourceError):
    """The server went away while it was answering; the prompt may be sent again."""


class ServerFailed(ResourceError):
    """The server failed at the prompt, or ended it."""


class TritonClient:
    """Sends prompts to one model of one server. Safe to use from several threads."""

    def __init__(self, url: str = DEFAULT_URL, model: str = DEFAULT_MODEL) -> None:
        """Nothing is sent before the first prompt."""
        self.url, self.model = url, model

    def stream(self, prompt: Prompt, *, stream: bool = True, request_id: str | None = None) -> TextStream:
        """Send `prompt`; its chunks come as they are made, or in one piece without `stream`."""
        return TextStream(self, prompt, stream, request_id or uuid.uuid4().hex)

    def complete(self, prompt: Prompt, *, request_id: str | None = None) -> list[Completion]:
        """Send `prompt` and wait for its `n` whole answers.

        Raises:
            TrierarchError: as iterating over a TextStream does.
        """
        with self.stream(prompt, stream=False, request_id=request_id) as chunks:
            return join(chunks)


class TextStream:
    """The chunks of one prompt, in order. Leaving the `with` block before the last one stops the work on the server."""

    def __init__(self, client: TritonClient, prompt: Prompt, stream: bool, request_id: str) -> None:
        """Send `prompt`."""
        self.request_id = request_id
        self._url = client.url
        self._arrivals: queue.SimpleQueue[tuple[float, Any, Any]] = queue.SimpleQueue()
        self._is_over = False
        self._channel = triton.InferenceServerClient(client.url)
        self._channel.start_stream(self._arrive)
        self.started = time.monotonic()
        inputs = [_input(*tensor) for tensor in prompt.tensors(stream)]
        # A stream that is broken already says why when it is read.
        with contextlib.suppress(triton.InferenceServerException):
            self._channel.async_stream_infer(
                client.model,
                inputs,
                request_id=request_id,
                enable_empty_final_response=True,
                parameters={TAG_ERRORS: True},
            )

    def __enter__(self) -> Self:
        """The stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what has not come to its end."""
        self.cancel()

    def _arrive(self, result: Any, error: Any) -> None:
        self._arrivals.put((time.monotonic(), result, error))

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks; the last of each answer has a finish reason. A cancelled stream just ends.

        Raises:
            RequestRefused, ServerUnreachable, ServerBusy, StreamBroken, ServerFailed: as their names say.
        """
        while not self._is_over:
            received, result, error = self._arrivals.get()
            if self._is_over:
                return
            if error is not None:
                self._close(cancel=True)
                raise self._explain(error)
            response = result.get_response()
            if response.parameters["triton_final_response"].bool_param:
                self._close(cancel=False)
            if response.outputs:
                yield from _chunks(result, received)

    def cancel(self) -> None:
        """Stop the work on the server; from any thread. Idempotent, and nothing to a stream that is over."""
        if not self._is_over:
            self._close(cancel=True)
            self._arrivals.put((time.monotonic(), None, None))  # wakes whoever iterates

    def _close(self, *, cancel: bool) -> None:
        self._is_over = True
        self._channel.stop_stream(cancel_requests=cancel)
        self._channel.close()

    def _explain(self, error: Any) -> TrierarchError:
        tagged = untag(str(error.message()))
        status = tagged.code.value if tagged else str(error.status() or "").removeprefix("StatusCode.")
        message = " ".join(str(tagged or error.message()).split())
        if status in REFUSED or "unknown model" in message:
            return RequestRefused(message)
        if status == "UNAVAILABLE" and any(words in message.lower() for words in CUT_OFF):
            return StreamBroken(f"the server at {self._url} went away while it was answering ({message}); ask again")
        if status == "UNAVAILABLE" and any(words in message.lower() for words in NEVER_CONNECTED):
            return ServerUnreachable(
                f"nothing answers at {self._url}; start a server with: trierarch serve ENGINE, or name another with --url"
            )
        if status == "UNAVAILABLE":
            return ServerBusy(f"{message}; ask again")
        return ServerFailed(f"the server failed: {message or 'no reason given'} ({status or 'UNKNOWN'})")


def _input(name: str, datatype: str, values: list[Any]) -> triton.InferInput:
    array = np.array([values], dtype=triton_to_np_dtype(datatype))
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def _chunks(result: Any, received: float) -> Iterator[Chunk]:
    """The chunks of a response: one while streaming, one an answer without."""
    texts = _flat(result, "text_output")
    reasons = _flat(result, "finish_reason")
    first = next(iter(_flat(result, "sequence_index")), 0)
    tokens = result.as_numpy("output_ids")
    rows = np.asarray(tokens).reshape(len(texts), -1) if tokens is not None and texts else None
    lengths = _flat(result, "sequence_length")
    inputs, outputs = _flat(result, "num_input_tokens"), _flat(result, "num_output_tokens")
    for row, text in enumerate(texts):
        reason = reasons[row].decode() if row < len(reasons) else ""
        ids = (
            ()
            if rows is None
            else tuple(int(token) for token in rows[row][: lengths[row] if row < len(lengths) else None])
        )
        yield Chunk(
            text=text.decode(),
            index=int(first) + row,
            token_ids=ids,
            finish_reason=reason or None,
            num_input_tokens=int(inputs[min(row, len(inputs) - 1)]) if inputs else None,
            num_output_tokens=int(outputs[min(row, len(outputs) - 1)]) if outputs else len(ids),
            received=received,
        )


def _flat(result: Any, name: str) -> list[Any]:
    array = result.as_numpy(name)
    return [] if array is None else list(np.asarray(array).reshape(-1))
