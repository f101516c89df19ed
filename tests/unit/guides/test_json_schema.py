"""JSON schemas: what is served is obeyed, as `jsonschema` judges, and what would not be is refused by name."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.guiding import allowed, byte_grammars, outputs
from trierarch.python_backend.guides.json_schema import MOST_NESTED, Unsupported, check_schema
from trierarch.python_backend.request import GuideKind

NAMES = st.sampled_from(["a", "b", "long name", "é", 'q"'])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(["x", "é\n", [1, "a"], {"a": None}]))
Strategy = st.SearchStrategy[dict[str, Any]]


def _some(**fields: st.SearchStrategy[Any]) -> Strategy:
    return st.fixed_dictionaries({}, optional=fields)


def _ordered(low: str, high: str, values: st.SearchStrategy[Any]) -> Strategy:
    pairs = st.tuples(values, values).map(sorted)
    return pairs.flatmap(lambda pair: _some(**{low: st.just(pair[0]), high: st.just(pair[1])}))


INTEGERS = st.one_of(
    _ordered("minimum", "maximum", st.integers(-1000, 1000)),
    _ordered("minimum", "exclusiveMaximum", st.integers(-1000, 1000)).filter(
        lambda range_: range_.get("minimum") != range_.get("exclusiveMaximum")
    ),
    st.integers(1, 30).map(lambda number: {"multipleOf": number}),
).map(lambda fields: {"type": "integer", **fields})
NUMBERS = _ordered("minimum", "maximum", st.integers(-50, 50).map(lambda number: number / 4)).map(
    lambda fields: {"type": "number", **fields}
)
STRINGS = st.one_of(
    _ordered("minLength", "maxLength", st.integers(0, 6)),
    st.sampled_from([r"^a+b*$", r"x|yz", r"^[^a-c]{2}$", r"^\d{3}-[A-F]$", r"é+", r"^\w*\.$"]).map(
        lambda pattern: {"pattern": pattern}
    ),
    st.sampled_from(["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "duration"]).map(
        lambda name: {"format": name}
    ),
).map(lambda fields: {"type": "string", **fields})
LEAVES = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    INTEGERS,
    NUMBERS,
    STRINGS,
    VALUES.map(lambda value: {"const": value}),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    st.just({"type": ["integer", "string"], "minimum": 3, "minLength": 2}),
)


def _arrays(inner: Strategy) -> Strategy:
    counts = _ordered("minItems", "maxItems", st.integers(0, 3))
    items = st.one_of(
        _some(items=inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"prefixItems": schemas, "items": True}),
    )
    return st.tuples(counts, items).map(lambda pair: {"type": "array", **pair[0], **pair[1]})


@st.composite
def _objects(draw: st.DrawFn, inner: Strategy) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, max_size=3))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if draw(st.booleans()):
        schema["required"] = [name for name in properties if draw(st.booleans())]
    kind = draw(st.sampled_from(["closed", "open", "typed", "counted", "most"]))
    if kind == "open":
        schema["additionalProperties"] = True
    elif kind == "typed":
        schema["additionalProperties"] = draw(inner)
    elif kind == "counted" and properties:
        schema["minProperties"] = draw(st.integers(0, len(properties)))
    elif kind == "most":
        schema["maxProperties"] = max(1, len(properties), len(schema.get("required", [])))
    return schema


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        _arrays(inner),
        _objects(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas}),
        st.tuples(inner, inner).map(
            lambda pair: {
                "oneOf": [
                    {"type": "object", "properties": {"k": {"const": name}, "v": schema}, "required": ["k", "v"]}
                    for name, schema in zip("xy", pair, strict=True)
                ]
            }
        ),
        inner.map(lambda schema: {"$defs": {"d": schema}, "type": "array", "items": {"$ref": "#/$defs/d"}}),
        inner.map(lambda schema: {"allOf": [schema]}),
    ),
    max_leaves=4,
).filter(lambda schema: "$ref" not in json.dumps(schema) or "$defs" in schema)


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**20))
def test_what_is_served_is_obeyed(schema: dict[str, Any], seed: int) -> None:
    text = json.dumps(schema)
    validator = jsonschema.Draft202012Validator(schema)
    try:
        check_schema(text)
        found = outputs(GuideKind.JSON_SCHEMA, text, 3, seed)
    except (Unsupported, RuntimeError):
        return  # refused, here or by the compiler, is fine
    for output in found:
        value = json.loads(output)
        assert validator.is_valid(value), (text, output)


RECURSIVE = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"type": "integer"}}}},
    "$ref": "#/$defs/node",
}


def test_a_schema_may_lead_back_to_itself() -> None:
    check_schema(json.dumps(RECURSIVE))
    found = outputs(GuideKind.JSON_SCHEMA, json.dumps(RECURSIVE), 10)
    assert found
    assert all(jsonschema.Draft202012Validator(RECURSIVE).is_valid(json.loads(output)) for output in found)


def test_strings_with_a_length_have_no_control_characters() -> None:
    """xgrammar 0.2.8 would let them through."""
    matcher = byte_grammars().match(GuideKind.JSON_SCHEMA, '{"type": "string", "minLength": 2, "maxLength": 3}', (256,))
    assert matcher.accept(ord('"'))
    assert allowed(matcher.mask(), 256)[0] == ord(" ")
    for byte in "é日".encode():
        assert matcher.accept(byte)
    assert ord('"') in allowed(matcher.mask(), 256)
    assert matcher.accept(ord("a"))
    assert allowed(matcher.mask(), 256) == [ord('"')]


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("{", "it is not JSON"),
        ("[1]", "# must be an object, true or false"),
        ({"not": {"type": "integer"}}, "#: it needs a type"),
        ({"type": "integer", "not": {"const": 1}}, "#: not is not honoured for type integer"),
        ({"type": "array", "uniqueItems": True}, "#: uniqueItems is not honoured for type array"),
        ({"type": "array", "contains": {}}, "#: contains is not honoured"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "#: dependentRequired is not honoured"),
        ({"type": "object", "patternProperties": {}}, "#: patternProperties is not honoured"),
        ({"type": "object", "required": ["a"]}, "#: required names 'a', which properties does not have"),
        ({"if": {}, "then": {}}, "#: it needs a type"),
        ({"minimum": 3}, "#: it needs a type"),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "#: allOf of several schemas is not honoured"),
        ({"type": "integer", "allOf": [{"minimum": 3}]}, "#: type beside allOf is not honoured"),
        ({"$defs": {"i": {}}, "$ref": "#/$defs/i", "minimum": 3}, r"#: minimum beside \$ref is not honoured"),
        ({"$ref": "http://x/y"}, r'#: \$ref "http://x/y" leads out of the schema'),
        ({"$ref": "#/$defs/no"}, r"#: \$ref '#/\$defs/no' leads nowhere"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#: oneOf whose schemas are told apart neither"),
        ({"type": "integer", "enum": [1, "a"]}, '#: enum has "a", which is not of its type'),
        ({"const": 1, "minimum": 3}, "#: minimum beside const is not honoured"),
        ({"type": "string", "pattern": "a", "minLength": 3}, "#: pattern beside a length or a pattern"),
        ({"type": "string", "pattern": "a^b"}, "#: pattern has an anchor amid it, at 1"),
        ({"type": "number", "multipleOf": 0.5}, "#: multipleOf is not honoured for type number"),
        ({"type": "integer", "multipleOf": 7, "minimum": 8}, "#: multipleOf beside a range is not honoured"),
        ({"type": "object", "additionalProperties": True, "minProperties": 2}, "#: minProperties beside additional"),
        ({"type": "string", "minLength": -1}, "#: minLength must be an integer between 0 and"),
        ({"type": "strin"}, "#: type 'strin' is not one of JSON's"),
        ({"type": 5}, "type 5 must be a name, or a list of names"),
        ({"type": "array", "items": [{"type": "integer"}]}, "#/items must be an object"),
        ({"type": "object", "properties": {"a": {"minimum": 3}}}, "#/properties/a: it needs a type"),
        ({"anyOf": []}, "#: anyOf must be a list that is not empty"),
    ],
)
def test_what_would_not_be_obeyed_is_refused(schema: Any, says: str) -> None:
    with pytest.raises(Unsupported, match=f"^{says}"):
        check_schema(schema if isinstance(schema, str) else json.dumps(schema))


def test_nesting_is_bounded() -> None:
    def nested(levels: int) -> str:
        return '{"type":"array","items":' * levels + "true" + "}" * levels

    check_schema(nested(MOST_NESTED))
    with pytest.raises(Unsupported, match="nested deeper than 64 levels"):
        check_schema(nested(MOST_NESTED + 1))
    with pytest.raises(Unsupported):
        check_schema(nested(100_000))
