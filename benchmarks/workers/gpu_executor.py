"""Our embedded executor on a GPU, from the source tree: it tells how long it took to open and how many tokens it holds."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from trierarch.benchmarks.workers.adapting import ADAPTERS
from trierarch.benchmarks.workers.executor import ExecutorWorker
from trierarch.benchmarks.workers.protocol import Ready, serve


class GpuExecutorWorker(ExecutorWorker):
    """Answers each prompt with the adapter that its steering names."""

    def __init__(self, engine: Path) -> None:
        """Load `engine`, with the adapters beside it where there are any."""
        logging.basicConfig(level=logging.INFO)  # how long steps took to record, and what they take
        directory = engine.with_name(ADAPTERS)
        started = time.perf_counter()
        super().__init__(engine, adapter_directories=(directory,) if directory.is_dir() else ())
        self._open_seconds = time.perf_counter() - started

    @property
    def ready(self) -> Ready:
        """Of the source tree, which need not be installed."""
        stats = self._executor.stats()
        settings = {"open_seconds": self._open_seconds, "kv_tokens": stats.max_blocks * stats.tokens_per_block}
        return Ready("source", settings)


if __name__ == "__main__":
    serve(GpuExecutorWorker)
