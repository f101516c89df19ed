"""AdapterLoader: the thread that loads adapters, so that no step ever waits for a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable

from trierarch.python_backend.adapters.cache import AdapterCache


class AdapterLoader:
    """Loads what a cache is told to want until it is closed."""

    def __init__(self, cache: AdapterCache, on_change: Callable[[], None]) -> None:
        """`on_change` is called after each load, on the loader's thread, be it that it failed."""
        self._cache = cache
        self._on_change = on_change
        self._thread = threading.Thread(target=self._run, name="trierarch-adapters", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the cache and wait for the load under way. Idempotent."""
        self._cache.close()
        self._thread.join()

    def _run(self) -> None:
        while self._cache.wait():
            if self._cache.load_next():
                self._on_change()
