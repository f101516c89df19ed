"""TritonChannel: a Channel over a response sender. With `answer_each`, the only code that makes responses.

Measured on Triton 2.51: responses sent from several threads at once dead-lock or abort the whole server, so every send
of the process passes one lock. Asking whether a request is cancelled while its last response is being sent crashes the
server, so a channel does one thing at a time. And a request whose last response never arrives hangs its client for
ever, so a channel sends exactly one final response, whatever happens.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import triton_python_backend_utils as pb

from trierarch.python_backend.errors import ServingError
from trierarch.python_backend.triton.incoming import Incoming
from trierarch.python_backend.triton.inputs import Array
from trierarch.python_backend.triton.responses import NamedArray
from trierarch.python_backend.triton.status import TAG_ERRORS, status_of, tag

logger = logging.getLogger(__name__)

_SENDING: Final = threading.Lock()
_FINAL: Final = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonChannel:
    """Sends the responses of one request."""

    def __init__(self, sender: Any, tags_errors: bool = False) -> None:
        """Own `sender`, an InferenceResponseSender nobody else uses; `tags_errors` for a reader that is a BLS model."""
        self._sender = sender
        self._tags_errors = tags_errors
        self._lock = threading.Lock()  # taken before _SENDING
        self._is_open = True

    def send(self, arrays: Sequence[NamedArray], is_final: bool) -> None:
        """See Channel.send. A response that cannot be sent ends the request with an error instead."""
        try:
            self._send(_response(arrays), is_final)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """See Channel.fail."""
        try:
            self._send(_error_response(error, self._tags_errors), is_final=True)
        except Exception:
            logger.exception("an error could not be sent: %s", error)

    def is_cancelled(self) -> bool:
        """See Channel.is_cancelled."""
        with self._lock:
            return self._is_open and bool(self._sender.is_cancelled())

    def _send(self, response: Any, is_final: bool) -> None:
        with self._lock, _SENDING:
            if self._is_open:
                self._sender.send(response, flags=_FINAL if is_final else 0)
                self._is_open = not is_final


def answer_each(requests: Sequence[Any], answer: Callable[[dict[str, Array]], Sequence[NamedArray]]) -> list[Any]:
    """One response for each request of a model that answers at once; an error is that request's alone."""
    responses = []
    for request in requests:
        try:
            responses.append(_response(answer(to_arrays(request.inputs()))))
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            responses.append(_error_response(error))
    return responses


def take(request: Any) -> Incoming:
    """Take a pb_utils.InferenceRequest apart. From here on it must be answered through the channel."""
    parameters = json.loads(request.parameters() or "{}")
    tags_errors = bool(parameters.pop(TAG_ERRORS, False))
    return Incoming(
        client_id=request.request_id(),
        arrays=to_arrays(request.inputs()),
        requested=frozenset(request.requested_output_names()),
        timeout=request.timeout() / 1e6 or None,
        channel=TritonChannel(request.get_response_sender(), tags_errors),
        parameters=parameters,
    )


def to_arrays(tensors: Iterable[Any]) -> dict[str, Array]:
    """Copies of the tensors of a Triton request or response, by name.

    What `as_numpy` gives is a view of memory that Triton takes back with the tensor; a later look at it is a crash.
    """
    return {tensor.name(): tensor.as_numpy().copy() for tensor in tensors}


def _response(arrays: Sequence[NamedArray]) -> Any:
    return pb.InferenceResponse([pb.Tensor(name, array) for name, array in arrays])


def _error_response(error: BaseException, is_tagged: bool = False) -> Any:
    code, message = status_of(error)
    if not isinstance(error, ServingError):
        logger.error("a request failed", exc_info=error)
    shown = tag(code, message) if is_tagged else message
    return pb.InferenceResponse(error=pb.TritonError(shown, getattr(pb.TritonError, code)))
