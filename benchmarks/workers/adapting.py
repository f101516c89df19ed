"""Our embedded executor with a directory of adapters beside its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trierarch.benchmarks.workers.executor import ExecutorWorker
from trierarch.benchmarks.workers.protocol import serve

ADAPTERS: Final = "adapters"
"""The directory's name, beside the engine."""


class AdaptingWorker(ExecutorWorker):
    """Answers each prompt with the adapter that its steering names."""

    def __init__(self, engine: Path) -> None:
        """Load `engine`."""
        super().__init__(engine, adapter_directories=(engine.with_name(ADAPTERS),))

    def counters(self) -> dict[str, float]:
        """See Counting.counters: what adapters took and did since the start."""
        stats = self._executor.stats().adapters
        assert stats is not None, "the engine takes adapters"
        return {
            "adapter_bytes": stats.loaded_bytes,
            "adapter_loads": stats.num_loads,
            "adapter_load_failures": stats.num_load_failures,
            "adapter_evictions": stats.num_evictions,
        }


if __name__ == "__main__":
    serve(AdaptingWorker)
