"""Waiting for what happens soon, without saying how soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PATIENCE_SECONDS: Final = 60.0


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Return once `holds()`; fail with `what` when it does not for a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)
