"""Checks an object against its kind's schema: structure, defaults, rules in CEL and keys of lists, in the API server's order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from trierarch.kserve.checks.finding import Finding, Severity, subject_of
from trierarch.kserve.checks.schema import Document, Schema, walk, with_defaults
from trierarch.kserve.objects.resource import Resource


def structure_findings(found: Resource, schema: Schema) -> Iterator[Finding]:
    """What `schema` says against an object of its kind. Needs jsonschema and common-expression-language."""
    import jsonschema

    # What is nested deepest names the field; the errors of a junctor name only the junctor.
    filled = found if schema.openapi is None else with_defaults(schema.openapi, found)
    validator = jsonschema.Draft202012Validator(schema.strict)
    broken = sorted(validator.iter_errors(filled), key=lambda error: [str(part) for part in error.absolute_path])
    for error in broken:
        yield Finding(subject_of(found), _path(error.absolute_path), error.message[:300])
    if broken or schema.openapi is None:
        return
    for path, below, value in walk(schema.openapi, filled):
        yield from _rule_findings(found, path, below, value)
        yield from _list_findings(found, path, below, value)


def _rule_findings(found: Resource, path: str, schema: Document, value: Any) -> Iterator[Finding]:
    """Rules that compare with an object's former state (oldSelf) say nothing of a new one."""
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"]:
            continue
        try:
            holds = _evaluate(rule["rule"], value)
        except RuntimeError as error:  # a function that is not known here
            message = f"rule {rule['rule']} was not evaluated ({error})"
            yield Finding(subject_of(found), path, message, Severity.UNCHECKED)
            continue
        if not holds:
            yield Finding(subject_of(found), path, rule.get("message") or f"breaks the rule {rule['rule']}")


def _list_findings(found: Resource, path: str, schema: Document, value: Any) -> Iterator[Finding]:
    if not isinstance(value, list):
        return
    kind = schema.get("x-kubernetes-list-type")
    if kind == "map":
        keys = schema["x-kubernetes-list-map-keys"]
        identities = [json.dumps([item.get(key) for key in keys]) for item in value if isinstance(item, dict)]
        what = f"two items have the same {', '.join(keys)}"
    elif kind == "set":
        identities, what = [json.dumps(item, sort_keys=True) for item in value], "two items are the same"
    else:
        return
    if len(set(identities)) < len(identities):
        yield Finding(subject_of(found), path, what)


def _evaluate(rule: str, value: Any) -> bool:
    """Whether the rule holds; as in the API server, one that reads a field which is not there does not."""
    import cel

    context = cel.Context(variables={"self": value}, functions={"matches": _matches})
    try:
        return bool(cel.evaluate(rule, context))
    except (KeyError, IndexError, TypeError, ValueError):
        return False


def _matches(text: str, pattern: str) -> bool:
    return re.search(pattern, text) is not None


def _path(parts: Any) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".")
