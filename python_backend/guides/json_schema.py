"""What of JSON Schema is honoured: whatever is not is refused by name, for an ignored keyword would let wrong outputs pass.

The rules say what xgrammar 0.2 makes of a schema, found out by trying outputs of its grammars against `jsonschema`
(tests/unit/guides/test_json_schema.py). An object is closed unless `additionalProperties` opens it, and its properties
come in the order of the schema: an output obeys the schema, but not all that obey it can be drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from trierarch.python_backend.guides.regex import misplaced_anchor

Schema = Mapping[str, Any]

MOST_NESTED: Final = 64
"""Levels of a schema."""
_MOST_REPEATED: Final = 1 << 20

_NOTES: Final = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "$schema",
        "$id",
        "$comment",
        "$anchor",
        "deprecated",
        "readOnly",
        "writeOnly",
        "nullable",
        "contentEncoding",
        "contentMediaType",
        "$defs",
        "definitions",
    ]
)
"""Keywords that say nothing about which values obey."""
_OF_TYPE: Final[dict[str, frozenset[str]]] = {
    "null": frozenset(),
    "boolean": frozenset(),
    "integer": frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
    "number": frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
    "string": frozenset(["minLength", "maxLength", "pattern", "format"]),
    "array": frozenset(["items", "prefixItems", "minItems", "maxItems"]),
    "object": frozenset(["properties", "required", "additionalProperties", "minProperties", "maxProperties"]),
}
_ALONE: Final = ("$ref", "anyOf", "oneOf", "allOf", "const", "enum")
"""Keywords beside which no other is read."""
_TYPES: Final[dict[type, frozenset[str]]] = {
    type(None): frozenset({"null"}),
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "number"}),
    float: frozenset({"number"}),
    str: frozenset({"string"}),
    list: frozenset({"array"}),
    dict: frozenset({"object"}),
}


class Unsupported(Exception):
    """A schema says what cannot be honoured; the message names the place and the reason."""


def check_schema(text: str) -> None:
    """Raise Unsupported unless every output of the schema's grammar obeys the schema. `text` is JSON of bounded length."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unsupported(f"it is not JSON ({error})") from None
    places = [("#", schema, 0)]
    while places:
        place, node, depth = places.pop()
        if depth > MOST_NESTED:
            raise Unsupported(f"it is nested deeper than {MOST_NESTED} levels")
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise Unsupported(f"{place} must be an object, true or false")
        for reason in _objections(node, schema):
            raise Unsupported(f"{place}: {reason}")
        places += ((f"{place}/{path}", child, depth + 1) for path, child in _children(node))


def with_patterns_for_lengths(text: str) -> str:
    """A schema that was checked, with lengths of strings said as patterns.

    xgrammar lets control characters into strings that have a length, which JSON does not; a pattern's dot keeps them out.
    """
    schema = json.loads(text)
    nodes = [schema]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, dict):
            continue
        low, high = node.pop("minLength", 0), node.pop("maxLength", "")
        if low or high != "":
            node["pattern"] = f"^.{{{low},{high}}}$"
        nodes += (child for _, child in _children(node))
    return json.dumps(schema)


def _children(node: Schema) -> Iterator[tuple[str, Any]]:
    for name in ("properties", "$defs", "definitions"):
        yield from ((f"{name}/{key}", child) for key, child in _mapping(node, name).items())
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        yield from ((f"{name}/{index}", child) for index, child in enumerate(_list(node, name)))
    yield from ((name, node[name]) for name in ("items", "additionalProperties") if name in node)


def _objections(node: Schema, root: Any) -> Iterator[str]:
    """Why a node cannot be honoured, its children apart."""
    words = [word for word in node if word not in _NOTES]
    alone = next((word for word in _ALONE if word in node), None)
    if alone is not None:
        if others := [word for word in words if word not in (alone, "type")]:
            yield f"{others[0]} beside {alone} is not honoured; leave one of them out"
        yield from _alone_objections(alone, node, root)
        return
    types = _types(node)
    if words and not types:
        yield "it needs a type"
    if unknown := types - _OF_TYPE.keys():
        yield f"type {min(unknown)!r} is not one of JSON's"
        return
    known = frozenset({"type"}).union(*(_OF_TYPE[name] for name in types))
    for word in words:
        if word not in known:
            yield f"{word} is not honoured for type {', '.join(sorted(types))}; leave it out"
    yield from _string_objections(node)
    yield from _number_objections(node)
    yield from _object_objections(node)


def _alone_objections(word: str, node: Schema, root: Any) -> Iterator[str]:
    if word == "$ref":
        yield from _reference_objections(node["$ref"], root)
    elif word in ("const", "enum"):
        values = [node["const"]] if word == "const" else _list(node, "enum")
        if not values:
            yield "enum must not be empty"
        if types := _types(node):
            strays = [value for value in values if not types & _TYPES[type(value)]]
            if strays:
                yield f"{word} has {json.dumps(strays[0])}, which is not of its type"
        return
    elif not _list(node, word):
        yield f"{word} must be a list that is not empty"
    elif word == "allOf" and len(node["allOf"]) > 1:
        yield "allOf of several schemas is not honoured; merge them into one"
    elif word == "oneOf" and not _are_disjoint(node["oneOf"]):
        yield "oneOf whose schemas are told apart neither by type nor by a const property is not honoured; use anyOf"
    if "type" in node:
        yield f"type beside {word} is not honoured; leave one of them out"


def _reference_objections(reference: Any, root: Any) -> Iterator[str]:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        yield f"$ref {json.dumps(reference)} leads out of the schema; only #/... is followed"
        return
    target = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, dict) or key not in target:
            yield f"$ref {reference!r} leads nowhere"
            return
        target = target[key]


def _string_objections(node: Schema) -> Iterator[str]:
    for word in ("minLength", "maxLength"):
        if not isinstance(node.get(word, 0), int) or not 0 <= node.get(word, 0) <= _MOST_REPEATED:
            yield f"{word} must be an integer between 0 and {_MOST_REPEATED}"
    for word in ("pattern", "format"):
        if word in node and ("minLength" in node or "maxLength" in node or (word == "format" and "pattern" in node)):
            yield f"{word} beside a length or a pattern is not honoured; put both into one pattern"
    if "pattern" in node and (place := misplaced_anchor(str(node["pattern"]))) is not None:
        yield f"pattern has an anchor amid it, at {place}; anchors are honoured at its ends alone"


def _number_objections(node: Schema) -> Iterator[str]:
    if "multipleOf" in node:
        if "number" in _types(node):
            yield "multipleOf is honoured for integers alone"
        if any(word in node for word in _OF_TYPE["number"]):
            yield "multipleOf beside a range is not honoured; leave one of them out"


def _object_objections(node: Schema) -> Iterator[str]:
    declared = _mapping(node, "properties")
    for name in _list(node, "required"):
        if name not in declared:
            yield f"required names {name!r}, which properties does not have"
    is_open = node.get("additionalProperties", False) is not False
    if is_open and "minProperties" in node:
        yield "minProperties beside additionalProperties is not honoured, since names may repeat; leave one of them out"


def _are_disjoint(schemas: list[Any]) -> bool:
    """Whether no value obeys two of `schemas`, as far as that is plain to see."""
    return all(_differ(one, other) for index, one in enumerate(schemas) for other in schemas[:index])


def _differ(one: Any, other: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one is False or other is False
    types, others = _all_types(one), _all_types(other)
    if types and others and not types & others:
        return True
    shared = set(_list(one, "required")) & set(_list(other, "required"))
    consts = [(_const(one, name), _const(other, name)) for name in shared]
    return any(None not in pair and pair[0] != pair[1] for pair in consts)


def _all_types(node: Schema) -> frozenset[str]:
    """Types that its values may have, an integer's being a number too; none if that is not said."""
    if "const" in node:
        return _TYPES[type(node["const"])]
    types = _types(node)
    return types | {"integer"} if "number" in types else types


def _const(node: Schema, name: str) -> str | None:
    """JSON of the one value that a property may have."""
    schema = _mapping(node, "properties").get(name)
    if not isinstance(schema, dict):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return json.dumps(values[0]) if isinstance(values, list) and len(values) == 1 else None


def _types(node: Schema) -> frozenset[str]:
    types = node.get("type", [])
    names = [types] if isinstance(types, str) else types
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Unsupported(f"type {json.dumps(types)} must be a name, or a list of names")
    return frozenset(names)


def _mapping(node: Schema, word: str) -> Schema:
    value = node.get(word, {})
    if not isinstance(value, dict):
        raise Unsupported(f"{word} must be an object")
    return value


def _list(node: Schema, word: str) -> list[Any]:
    value = node.get(word, [])
    if not isinstance(value, list):
        raise Unsupported(f"{word} must be a list")
    return value
