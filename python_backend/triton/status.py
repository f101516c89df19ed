"""Serving errors as Triton's: a code for programs and a message for people."""

from __future__ import annotations

from enum import StrEnum

from trierarch.python_backend.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, ServingError


class StatusCode(StrEnum):
    """Names of `TritonError`'s codes that requests end with."""

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


_CODES: dict[type[ServingError], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARG,
    Overloaded: StatusCode.UNAVAILABLE,
    Cancelled: StatusCode.CANCELLED,
    DeadlineExceeded: StatusCode.CANCELLED,
}


def status_of(error: BaseException) -> tuple[StatusCode, str]:
    """Code and message for a client. An error nobody foresaw says nothing of our insides; the log has it."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, ServingError):
        return StatusCode.INTERNAL, str(error)
    return StatusCode.INTERNAL, f"internal error ({type(error).__name__}); the server's log has the details"
