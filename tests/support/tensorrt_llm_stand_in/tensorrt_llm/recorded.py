"""Classes made of recorded names: they refuse what is not known and miss what is required."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

VERSION = version("tensorrt_llm")
RELEASE = ".".join(VERSION.split(".")[:2])
_DATA = Path(__file__).resolve().parents[3] / "data" / "tensorrt_llm_signatures.json"


@cache
def signatures() -> dict[str, Any]:
    """Of this release."""
    found: dict[str, Any] = json.loads(_DATA.read_text(encoding="utf-8"))[RELEASE]
    return found


def is_there(name: str) -> bool:
    """Whether the release has a class or a call."""
    return not signatures().get(name, {"absent": True}).get("absent", False)


def fields_of(name: str) -> dict[str, dict[str, Any]]:
    """Field -> what is recorded of it, those of its bases included."""
    entry = signatures()[name]
    fields: dict[str, dict[str, Any]] = {}
    for base in entry.get("bases", ()):
        fields |= fields_of(base)
    return fields | {field["name"]: field for field in entry["fields"]}


def class_of(name: str) -> type[Any]:
    """A class with a recorded constructor; one of pydantic's refuses with a ValueError, others with a TypeError."""
    fields = fields_of(name)
    aliases = {field["alias"]: own for own, field in fields.items() if "alias" in field}
    error = ValueError if "pydantic" in str(signatures()[name]["kind"]) else TypeError

    def construct(self: Any, **given: Any) -> None:
        for key in given:
            if key not in fields and key not in aliases:
                raise error(f"{name}: {key}: extra inputs are not permitted")
            if fields[aliases.get(key, key)].get("init") is False:
                raise error(f"{name}: {key} is not to be given")
        named = {aliases.get(key, key): value for key, value in given.items()}
        for own, field in fields.items():
            if own not in named and field.get("required"):
                raise error(f"{name}: {own}: field required")
            setattr(self, own, named.get(own, field.get("default")))
        self.given = frozenset(given)

    return type(name, (), {"__init__": construct})


def params_of(call: str) -> frozenset[str]:
    """Names that a call takes; those that are uncertain are not among them."""
    params = {param["name"] for param in signatures()[call]["params"]}
    return frozenset(params - set(signatures()[call].get("uncertain_params", ())))
