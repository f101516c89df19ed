"""Errors of serving requests, in two families, so that the translation to Triton needs no table of cases.

ServingError
├── InvalidRequest         the caller's fault: gRPC INVALID_ARGUMENT, HTTP 400
├── UnknownAdapter         the caller named an adapter that is not here (an InvalidRequest)
├── UnusableAdapter        the adapter that the caller named is damaged, or another engine's (an InvalidRequest)
├── Overloaded             the queue is full: UNAVAILABLE at once, the caller may retry
├── ShuttingDown           draining (an Overloaded)
├── Cancelled              the caller went away or asked to stop
├── DeadlineExceeded       the request's own deadline passed
└── ExecutorFailed         ours: the step failed; INTERNAL
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of every error a request can end with."""


class InvalidRequest(ServingError):
    """The request cannot be served as asked; the message names field, value and remedy."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        """`value` is shown shortened; prompts and other long values never flood a log."""
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        super().__init__(f"{field} is {shown}: {remedy}")
        self.field = field
        self._value = value
        self._remedy = remedy

    def renamed(self, field: str) -> InvalidRequest:
        """The same error about `field`: what the client calls the thing."""
        return type(self)(field, self._value, self._remedy)


class UnknownAdapter(InvalidRequest):
    """No adapter of that name or id is registered."""


class UnusableAdapter(InvalidRequest):
    """The adapter is registered and cannot be used; the remedy says why."""


class Overloaded(ServingError):
    """The queue is full."""


class ShuttingDown(Overloaded):
    """The executor is draining and takes no new request."""


class Cancelled(ServingError):
    """The caller cancelled."""


class DeadlineExceeded(ServingError):
    """The request's deadline passed before it finished."""


class ExecutorFailed(ServingError):
    """A step failed through no fault of the request."""
