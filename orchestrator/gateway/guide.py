"""`response_format`, and tools that must be called, as the contract's guided decoding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trierarch.orchestrator.gateway.fields import Fields
from trierarch.orchestrator.gateway.tensors import Tensors


def write_response_format(fields: Fields, tensors: Tensors) -> None:
    """Hold the answer to the format that `fields` name.

    Raises:
        ApiError: it is of no known type, or has no schema.
    """
    wanted = fields.object("response_format")
    if wanted is None:
        return
    kind = wanted.text("type")
    if kind == "json_object":
        # The contract's own kind `json` takes lists and single values as well.
        write_guide(tensors, "json_schema", json.dumps({"type": "object"}))
    elif kind == "json_schema":
        described = wanted.object("json_schema")
        schema = None if described is None else described.object("schema")
        if described is None or schema is None:
            wanted.fail("json_schema", "must be an object with a schema")
        write_guide(tensors, "json_schema", json.dumps(described.raw("schema")))
    elif kind != "text":
        wanted.fail("type", "must be text, json_object or json_schema")


def write_guide(tensors: Tensors, kind: str, guide: str = "") -> None:
    """Hold the answer to a guide of the contract's kinds."""
    tensors.texts("guided_decoding_guide_type", kind)
    if guide:
        tensors.texts("guided_decoding_guide", guide)


def arguments_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a function's arguments."""
    schema = function.get("parameters")
    return dict(schema) if schema else {"type": "object"}


def calls_schema(functions: Sequence[Mapping[str, Any]], are_many: bool) -> dict[str, Any]:
    """The JSON schema of a list of calls of `functions`, of one call at least."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "parameters": arguments_schema(function)},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    return schema if are_many else schema | {"maxItems": 1}
