"""LazyRole: a role that loads what it needs with its first request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trierarch.python_backend.triton.model_context import RoleModel


class LazyRole:
    """Implements RoleModel. Triton calls an instance from one thread at a time."""

    def __init__(self, open_role: Callable[[], RoleModel]) -> None:
        """`open_role` is called once, unless it raises: then again with the next request."""
        self._open = open_role
        self._role: RoleModel | None = None

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """See RoleModel.execute. Raises what opening raises, which Triton answers each of `requests` with."""
        if self._role is None:
            self._role = self._open()
        return self._role.execute(requests)

    def close(self) -> None:
        """See RoleModel.close."""
        if self._role is not None:
            self._role.close()
