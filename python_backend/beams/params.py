"""BeamParams: how a request's beams are searched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import MAX_LOGPROBS

MAX_BEAM_WIDTH: Final = MAX_LOGPROBS // 2
"""A step lists twice as many likeliest tokens as there are beams, so that enough are left when half of them end."""
_MAX_LENGTH_PENALTY: Final = 16.0


class EarlyStopping(StrEnum):
    """When a search ends that could go on; transformers' `early_stopping`."""

    FULL = "full"
    """As soon as `width` beams have finished (True)."""
    LIKELY = "likely"
    """Once the best living beam, ended here, would rank below all that have finished (False)."""
    NEVER = "never"
    """Once nothing that the best living beam may become ranks above them ("never")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamParams:
    """Checked on construction. Defaults are the contract's, not transformers'."""

    width: int
    """Beams kept in each step."""
    length_penalty: float = 0.0
    """Finished beams rank by log-probability / tokens ** length_penalty: above 0 favours long ones."""
    early_stopping: EarlyStopping = EarlyStopping.FULL
    diversity_rate: float = 0.0
    """Added to a candidate once for each beam that ranks above its own, in ranking alone (TensorRT-LLM's)."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest for a value out of range."""
        if not 2 <= self.width <= MAX_BEAM_WIDTH:
            raise InvalidRequest("beam_width", self.width, f"must be between 1 and {MAX_BEAM_WIDTH}")
        if not abs(self.length_penalty) <= _MAX_LENGTH_PENALTY:
            remedy = f"must be between -{_MAX_LENGTH_PENALTY:g} and {_MAX_LENGTH_PENALTY:g}"
            raise InvalidRequest("length_penalty", self.length_penalty, remedy)
        if not math.isfinite(self.diversity_rate):
            raise InvalidRequest("beam_search_diversity_rate", self.diversity_rate, "must be a finite number")
