"""What became of cached prefixes, as JSON for whoever sends requests to where their prefix lies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import numpy as np

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.kv_event import KvEvent
from trierarch.python_backend.triton.responses import NamedArray

SINCE: Final = "kv_events_since"


def kv_events(events: Sequence[KvEvent] | None, since: int) -> list[NamedArray]:
    """The arrays of the answer to a request with `kv_events_since`: a JSON object an event, in order.

    Raises:
        InvalidRequest: the engine tells of none.
    """
    if events is None:
        raise InvalidRequest(
            SINCE, since, "this engine tells of no events; build one for TensorRT-LLM with --kv-event-buffer"
        )
    return [("kv_events", np.array([json.dumps(asdict(event)).encode() for event in events], np.object_))]
