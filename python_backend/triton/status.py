"""Serving errors as Triton's: a code for programs and a message for people.

Triton 2.51 turns every error into INTERNAL on its way through business-logic scripting, and sends no status with an
error of a gRPC stream unless asked by the header `triton_grpc_error`, which crashes the server when errors come fast.
Whoever needs the status (our BLS model, our client) therefore asks for tagged messages, `CODE: message`, by the request
parameter TAG_ERRORS, and takes the tag off again.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from trierarch.python_backend.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, ServingError

TAG_ERRORS: Final = "trierarch_tag_errors"
"""Name of the boolean request parameter that asks for tagged errors."""


class StatusCode(StrEnum):
    """Names of `TritonError`'s codes that requests end with."""

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


_TAGGED: Final = re.compile(rf"(in ensemble '[^']*', )?(?P<code>{'|'.join(StatusCode)}): (?P<message>.*)", re.DOTALL)


class RelayedError(Exception):
    """Another model's error, with the status it had there."""

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


def untag(message: str) -> RelayedError | None:
    """The error that a tagged message stands for, also one that came through an ensemble; None without a tag."""
    match = _TAGGED.fullmatch(message)
    return RelayedError(StatusCode(match["code"]), match["message"]) if match else None
