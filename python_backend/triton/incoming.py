"""Incoming: a Triton request taken apart into what the rest of the room works with."""

from __future__ import annotations

from dataclasses import dataclass

from trierarch.python_backend.triton.channel import Channel
from trierarch.python_backend.triton.inputs import Array


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
