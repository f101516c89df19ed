"""Admission: whether an engine can guess the way a request wants."""

from __future__ import annotations

from trierarch.builder.manifest import Speculation
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import SpeculationParams


def check_drafters(params: SpeculationParams, built: Speculation | None) -> None:
    """Raise InvalidRequest for a drafter that the engine was not `built` with."""
    has = () if built is None else built.drafters
    for kind in params.drafters or ():
        if kind not in has:
            how = f"with --speculation {','.join(has)}; name some of these, or" if has else "without --speculation;"
            raise InvalidRequest("drafters", kind.value, f"this engine was built {how} leave it out")
