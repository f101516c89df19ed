"""Serving errors as Triton's: a code for programs and a message for people.

Triton 2.51 turns every error into INTERNAL on its way through business-logic scripting. Our BLS model therefore asks
for tagged messages, `CODE: message`, and takes the tag off again.
"""

from __future__ import annotations

from enum import StrEnum

from trierarch.python_backend.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, ServingError


class StatusCode(StrEnum):
    """Names of `TritonError`'s codes that requests end with."""

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class RelayedError(Exception):
    """An error of the model that a BLS model asked, with its own status."""

    def __init__(self, code: StatusCode, message: str) -> None:
        """`message` is the other model's, untagged."""
        super().__init__(message)
        self.code = code


_CODES: dict[type[ServingError], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARG,
    Overloaded: StatusCode.UNAVAILABLE,
    Cancelled: StatusCode.CANCELLED,
    DeadlineExceeded: StatusCode.CANCELLED,
}


def status_of(error: BaseException) -> tuple[StatusCode, str]:
    """Code and message for a client. An error nobody foresaw says nothing of our insides; the log has it."""
    if isinstance(error, RelayedError):
        return error.code, str(error)
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, ServingError):
        return StatusCode.INTERNAL, str(error)
    return StatusCode.INTERNAL, f"internal error ({type(error).__name__}); the server's log has the details"


def tag(code: StatusCode, message: str) -> str:
    """The message with its code before it."""
    return f"{code}: {message}"


def untag(message: str) -> RelayedError:
    """The error that a tagged message stands for; one without a tag is INTERNAL."""
    head, separator, rest = message.partition(": ")
    if separator and head in list(StatusCode):
        return RelayedError(StatusCode(head), rest)
    return RelayedError(StatusCode.INTERNAL, message)
