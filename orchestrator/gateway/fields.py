"""Fields: a JSON object read by name, with errors that name the field. JSON's null reads as absent, as OpenAI's clients mean it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn

from trierarch.orchestrator.gateway.errors import ApiError, invalid

INT32_MAX: Final = 2**31 - 1
FLOAT32_MAX: Final = 3.4e38


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        ApiError: it is none, or nested deeper than the parser goes.
    """
    try:
        # Python's parser takes NaN and Infinity, which JSON does not have.
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {_reason(error)}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is a JSON {_kind(value)}: it must be an object", code="invalid_json")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


class Fields:
    """Typed access to an object. Every getter raises ApiError where a field is there and of another type or range."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        """`path` is how the object is named in errors; the body itself has none."""
        self._values = values
        self._path = path

    def __contains__(self, name: str) -> bool:
        """Whether it is there and not null."""
        return self._values.get(name) is not None

    def named(self, name: str) -> str:
        """A field as errors name it."""
        return f"{self._path}.{name}" if self._path else name

    def raw(self, name: str) -> Any:
        """Whatever it is."""
        return self._values.get(name)

    def fail(self, name: str, remedy: str) -> NoReturn:
        """Raise ApiError about a field."""
        raise invalid(self.named(name), self._values.get(name), remedy)

    def refuse_others(self, known: Collection[str], remedies: Mapping[str, str] | None = None) -> None:
        """Raise ApiError for a field that is not known here; `remedies` say why, of some."""
        for name, value in self._values.items():
            if name in known or value is None:
                continue
            if remedies and name in remedies:
                self.fail(name, remedies[name])
            raise ApiError(
                400,
                f"Unrecognized request argument supplied: {self.named(name)[:100]}",
                param=self.named(name)[:100],
                code="unknown_parameter",
            )

    def text(self, name: str) -> str | None:
        """A string that has a UTF-8 form."""
        value = self._typed(name, str, "a string")
        if value is not None and not is_utf8(value):
            self.fail(name, "has half a surrogate pair; send valid Unicode")
        return None if value is None else str(value)

    def flag(self, name: str) -> bool:
        """A boolean; absent is false."""
        return bool(self._typed(name, bool, "true or false"))

    def integer(self, name: str, low: int, high: int = INT32_MAX) -> int | None:
        """An integer within bounds."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(name, "must be an integer")
        if not low <= value <= high:
            self.fail(name, f"must be between {low} and {high}")
        return value

    def number(self, name: str, low: float = -FLOAT32_MAX, high: float = FLOAT32_MAX) -> float | None:
        """A number within bounds."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, "must be a number")
        if not low <= value <= high:
            self.fail(name, f"must be between {low:g} and {high:g}")
        return float(value)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A string, or a list of some; absent is none."""
        value = self._values.get(name)
        if value is None:
            return ()
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, str) and is_utf8(item) for item in value):
            self.fail(name, "must be a string or a list of strings")
        if len(value) > most:
            raise invalid(self.named(name), len(value), f"takes at most {most}")
        return tuple(value)

    def object(self, name: str) -> Fields | None:
        """An object."""
        value = self._typed(name, dict, "an object")
        return None if value is None else Fields(value, self.named(name))

    def objects(self, name: str, most: int) -> list[Fields]:
        """A list of objects; absent is none."""
        value = self._typed(name, list, "a list of objects") or []
        if len(value) > most:
            raise invalid(self.named(name), len(value), f"takes at most {most}")
        found = []
        for index, item in enumerate(value):
            path = f"{self.named(name)}[{index}]"
            if not isinstance(item, dict):
                raise invalid(path, item, "must be an object")
            found.append(Fields(item, path))
        return found

    def _typed(self, name: str, kind: type, wanted: str) -> Any:
        value = self._values.get(name)
        if value is not None and not isinstance(value, kind):
            self.fail(name, f"must be {wanted}")
        return value


def is_utf8(text: str) -> bool:
    """Whether a string can be sent: JSON may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    return {list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
