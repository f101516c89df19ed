"""Reads a DeploySpec, and says of a bad one which field it is and what to write there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from trierarch.builder.errors import ConfigError
from trierarch.kserve.spec import MAX_NAME, DeploySpec, Profile

_REMEDIES: Final = {
    "name": f"use lower-case letters, digits and '-', a letter first, at most {MAX_NAME} characters",
    "namespace": "use lower-case letters, digits and '-', at most 63 characters",
    "storage.uri": "write a URI such as pvc://CLAIM/PATH, oci+native://IMAGE:TAG or s3://BUCKET/PATH",
    "storage.adapters": "write a URI such as pvc://CLAIM/PATH",
    "profile": f"use one of {', '.join(Profile)}",
    "image": "name the image that docker/Dockerfile builds, in lower case, with its tag or digest",
}


def parse_spec(raw: Mapping[str, Any]) -> DeploySpec:
    """`raw` as a DeploySpec.

    Raises:
        ConfigError: a value is missing, unknown or out of range; it is named.
    """
    try:
        return DeploySpec.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(_message(field, first["type"], first["msg"], first["input"])) from error


def _message(field: str, kind: str, message: str, value: Any) -> str:
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    remedy = _REMEDIES.get(field)
    if kind == "missing":
        return f"{field} is missing; {remedy or 'say it on the command line or in --spec'}"
    if kind == "extra_forbidden":
        return f"{field} is unknown; see the fields in docs/deploying.md"
    return f"{field} is {value!r}: {remedy or message}"
