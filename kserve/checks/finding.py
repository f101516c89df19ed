"""Finding: one thing that is wrong with an object, or that its author should know."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trierarch.kserve.objects.resource import Resource


class Severity(StrEnum):
    """What becomes of the object in a cluster."""

    ERROR = "error"
    """It is refused, or never works."""
    WARNING = "warning"
    """It is accepted, and does not do what it says."""
    UNCHECKED = "not checked"
    """Nobody here knows its kind."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found where."""

    subject: str
    """KIND/NAME."""
    path: str
    """Of the field, such as spec.predictor.minReplicas; empty for the whole object."""
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        place = f"{self.subject} {self.path}" if self.path else self.subject
        return f"{place}: {self.message}"


def subject_of(found: Resource) -> str:
    """KIND/NAME of an object, as far as it says so."""
    metadata = found.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{found.get('kind', '?')}/{name or '?'}"
