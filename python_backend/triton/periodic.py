"""Periodic: an action repeated on a thread of its own until stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Periodic:
    """Calls `action` every `period` seconds. An action that fails is logged and tried again the next time."""

    def __init__(self, name: str, period: float, action: Callable[[], None]) -> None:
        """Start at once."""
        self._period = period
        self._action = action
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the running action end, then no more. Idempotent."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._period):
            try:
                self._action()
            except Exception:
                logger.exception("%s failed", self._thread.name)
