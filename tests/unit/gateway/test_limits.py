"""The gateway imports nothing heavy, so it states the backend's limits itself; they must be the same."""

from __future__ import annotations

from trierarch.orchestrator.gateway import messages, sampling
from trierarch.python_backend import request
from trierarch.python_backend.text import chat


def test_limits_are_the_backends() -> None:
    assert messages.MAX_MESSAGES == chat.MAX_MESSAGES
    assert (sampling.MAX_LOGPROBS, sampling.MAX_N) == (request.MAX_LOGPROBS, request.MAX_N)
