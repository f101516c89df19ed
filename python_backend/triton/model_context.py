"""What a role is given to work with, and what it owes Triton."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from trierarch.python_backend.triton.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelContext:
    """One instance of one model."""

    name: str
    version: str
    engine: Path
    """`<model>/<version>/engine`; a link or a directory."""
    parameters: Parameters
    is_decoupled: bool
    """Whether one request may have many responses."""

    def in_repository(self, path: Path) -> Path:
        """Where a path of the configuration leads: it is relative to the repository, also where a copy of that is served."""
        return self.engine.parent.resolve().parents[1] / path


class RoleModel(Protocol):
    """A model of the repository, made from a ModelContext."""

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Take Triton's requests; None when their responses come through the senders."""
        ...

    def close(self) -> None:
        """Finish what is running and give everything back."""
        ...


@runtime_checkable
class Watched(Protocol):
    """A RoleModel that may become unable to serve; others are ready once they are made."""

    def is_ready(self) -> bool:
        """Whether it can serve. Must not wait for anything."""
        ...
