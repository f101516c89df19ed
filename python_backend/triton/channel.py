"""Channel: the way back to one Triton request. The only code that sends responses.

Measured on Triton 2.51: responses sent from several threads at once dead-lock or abort the whole server, so every send
of the process passes one lock. And a request whose last response never arrives hangs its client for ever, so a channel
sends exactly one final response, whatever happens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any, Final, Protocol

import triton_python_backend_utils as pb

from trierarch.python_backend.triton.responses import NamedArray
from trierarch.python_backend.triton.status import status_of, tag

logger = logging.getLogger(__name__)

_SENDING: Final = threading.Lock()
_FINAL: Final = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Channel(Protocol):
    """What a request's owner needs of its way back."""

    def send(self, arrays: Sequence[NamedArray], is_final: bool) -> None:
        """Send one response; nothing happens once the channel is closed."""
        ...

    def fail(self, error: BaseException) -> None:
        """Send an error as the last response; nothing happens once the channel is closed."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client has gone or cancelled. Costs a round trip to the server, some 0.2 ms."""
        ...


class TritonChannel:
    """A Channel over a response sender."""

    def __init__(self, sender: Any, tags_errors: bool = False) -> None:
        """Own `sender`, an InferenceResponseSender nobody else uses; `tags_errors` for a reader that is a BLS model."""
        self._sender = sender
        self._tags_errors = tags_errors
        self._is_open = True

    def send(self, arrays: Sequence[NamedArray], is_final: bool) -> None:
        """See Channel.send. A response that cannot be sent ends the request with an error instead."""
        try:
            response = pb.InferenceResponse([pb.Tensor(name, array) for name, array in arrays])
            self._send(response, is_final)
        except Exception as error:
            logger.exception("a response could not be sent")
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """See Channel.fail."""
        code, message = status_of(error)
        shown = tag(code, message) if self._tags_errors else message
        try:
            self._send(pb.InferenceResponse(error=pb.TritonError(shown, getattr(pb.TritonError, code))), True)
        except Exception:
            logger.exception("an error could not be sent: %s", message)

    def is_cancelled(self) -> bool:
        """See Channel.is_cancelled."""
        return self._is_open and bool(self._sender.is_cancelled())

    def _send(self, response: Any, is_final: bool) -> None:
        with _SENDING:
            if not self._is_open:
                return
            self._sender.send(response, flags=_FINAL if is_final else 0)
            self._is_open = not is_final
