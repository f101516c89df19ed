"""Checking data that others wrote: a pydantic model, and an error that names the value."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from trierarch.builder.errors import CheckpointError

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], raw: Mapping[str, Any], where: str) -> Model:
    """`raw` as a `model`.

    Raises:
        CheckpointError: a value is missing or out of range; it is named, after `where`.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        shown = "" if first["type"] == "missing" else f" is {reprlib.repr(first['input'])}"
        raise CheckpointError(
            f"{where}{field}{shown}: {first['msg']}; download the checkpoint again or take another copy of it"
        ) from error
