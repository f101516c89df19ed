"""Schema: the structure of one kind, as its CustomResourceDefinition or a published package says it.

A CRD's schema is OpenAPI with Kubernetes' own extensions. `to_json_schema` makes a strict JSON schema of it: what the API server
would prune in silence is an error here, since it is a field that somebody believes in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

Document = dict[str, Any]

_CHECKED_FORMATS: Final = ("date-time", "int32", "int64")
_DROPPED: Final = ("default", "example", "externalDocs", "description", "nullable")


@dataclass(frozen=True)
class Schema:
    """The structure of one kind in one version."""

    api_version: str
    """GROUP/VERSION."""
    kind: str
    source: str
    """For people: the directory or the package it is from."""
    openapi: Document | None = None
    """With Kubernetes' extensions; None where only a JSON schema is known."""
    json_schema: Document = field(default_factory=dict)
    """Used where there is no `openapi`."""

    @cached_property
    def strict(self) -> Document:
        """A JSON schema that knows all keys."""
        if self.openapi is None:
            return self.json_schema
        schema: Document = to_json_schema(self.openapi)
        # Every object has these; a CRD's schema need not say so.
        schema.setdefault("properties", {})
        for key, kind in (("apiVersion", "string"), ("kind", "string"), ("metadata", "object")):
            schema["properties"][key] = {"type": kind}
        schema["additionalProperties"] = False
        return schema


def to_json_schema(schema: Any) -> Any:
    """A structural OpenAPI schema as a strict JSON schema."""
    if not isinstance(schema, dict):
        return schema
    result = {key: value for key, value in (_converted(key, value) for key, value in schema.items()) if key}
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("anyOf", None)
        result["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if (
        result.get("type") == "object"
        and "properties" in schema
        and "additionalProperties" not in schema
        and not is_open
    ):
        result["additionalProperties"] = False
    return result


def closed(schema: Any) -> Any:
    """A JSON schema with every object that names its properties closed: for models that would take more."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        result["additionalProperties"] = False
    return result


def with_defaults(schema: Document, value: Any) -> Any:
    """`value` with the schema's defaults where it says nothing, as the API server fills them in before it validates."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        filled = {
            key: sub["default"] for key, sub in properties.items() if "default" in sub and key not in value
        } | value
        return {key: with_defaults(_of_key(schema, key), item) for key, item in filled.items()}
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), item) for item in value]
    return value


def walk(schema: Document, value: Any, path: str = "") -> Iterator[tuple[str, Document, Any]]:
    """(path, schema, value) of every place of `value` that the schema knows."""
    yield path, schema, value
    if isinstance(value, dict):
        for key, item in value.items():
            if below := _of_key(schema, key):
                yield from walk(below, item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from walk(schema["items"], item, f"{path}[{index}]")


def _of_key(schema: Document, key: str) -> Document:
    named = schema.get("properties", {}).get(key)
    others = schema.get("additionalProperties")
    found = named if named is not None else others
    return found if isinstance(found, dict) else {}


def _converted(key: str, value: Any) -> tuple[str, Any]:
    """A key of a schema and its value; an empty key where it says nothing to JSON schema."""
    if key == "properties":
        return key, {name: to_json_schema(sub) for name, sub in value.items()}
    if key in ("items", "not", "additionalProperties"):
        return key, to_json_schema(value)
    if key in ("allOf", "anyOf", "oneOf"):
        return key, [_junctor(sub) for sub in value]
    if key.startswith("x-kubernetes") or key in _DROPPED or (key == "format" and value not in _CHECKED_FORMATS):
        return "", None
    return key, value


def _junctor(schema: Any) -> Any:
    """Below a junctor schemas only narrow values down, and name a few of the properties: they are never closed."""
    if isinstance(schema, list):
        return [_junctor(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _junctor(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
