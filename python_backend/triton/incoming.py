"""Incoming: a Triton request taken apart into what the rest of the room works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What the client said beside the tensors: name -> string, number or bool."""
