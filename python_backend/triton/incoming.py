"""Incoming: a Triton request taken apart into what the rest of the room works with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from trierarch.python_backend.triton.channel import Channel
from trierarch.python_backend.triton.inputs import Array
from trierarch.python_backend.triton.status import TAG_ERRORS
from trierarch.python_backend.triton.triton_channel import TritonChannel, to_arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """One request, with the only way back to its client."""

    client_id: str
    """The id the client gave; empty where it gave none."""
    arrays: dict[str, Array]
    """Input's name -> array (B, ...)."""
    requested: frozenset[str]
    """Outputs the client wants to see: those it named, or all."""
    timeout: float | None
    """Seconds the client gives the request."""
    channel: Channel


def take(request: Any) -> Incoming:
    """Take a pb_utils.InferenceRequest apart. From here on it must be answered through the channel."""
    tags_errors = bool(json.loads(request.parameters() or "{}").get(TAG_ERRORS, False))
    return Incoming(
        client_id=request.request_id(),
        arrays=to_arrays(request.inputs()),
        requested=frozenset(request.requested_output_names()),
        timeout=request.timeout() / 1e6 or None,
        channel=TritonChannel(request.get_response_sender(), tags_errors),
    )
