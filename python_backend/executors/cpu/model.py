"""CompiledModel: the engine's compiled kernels over its packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.manifest import EngineManifest
from trierarch.builder.tensors import Array
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors import machine
from trierarch.python_backend.executors.cpu.abi import open_library
from trierarch.python_backend.executors.cpu.adapter import CpuAdapter
from trierarch.python_backend.executors.cpu.decoder import CompiledDecoder
from trierarch.python_backend.executors.cpu.kv_arrays import KvArrays
from trierarch.python_backend.executors.cpu.openmp import num_threads
from trierarch.python_backend.executors.cpu.paged_batch import PagedBatch
from trierarch.python_backend.executors.cpu.weights import load_weights
from trierarch.python_backend.executors.following import StepRows
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.scheduling.plan import Plan


class CompiledModel:
    """Computes a step's tokens."""

    def __init__(self, engine: Path, manifest: EngineManifest, taps: tuple[int, ...] = ()) -> None:
        """Load an engine that has kernels. Its packed weights take the place of the mapped ones in memory.

        taps: as `Head.taps`, of the head that reads along.

        Raises:
            EngineError: the weights or the kernels are missing, corrupt or not what the manifest says.
            ResourceError: there is no room.
        """
        assert manifest.kernels is not None
        machine.keep_freed_memory()
        library = open_library(engine / manifest.kernels)
        self.num_threads = num_threads()
        self._block_size = manifest.kv_cache.block_size
        self._decoder = CompiledDecoder(
            library,
            manifest.architecture,
            manifest.dtype,
            manifest.kv_cache.dtype,
            load_weights(engine, manifest),
            self.num_threads,
            _drop,
            taps,
        )
        self._tapped_size = len(taps) * manifest.architecture.hidden_size

    def compute(self, plan: Plan, kv: KvArrays) -> StepRows[Floats]:
        """Run the layers over the plan's tokens, drafts included, storing their keys and values."""
        batch = PagedBatch.build(plan, self._block_size)
        tapped = np.empty((batch.num_tokens, self._tapped_size), dtype=np.float32) if self._tapped_size else None
        return StepRows(batch.items, batch.first_rows, self._decoder.hidden(batch, kv, tapped), tapped)

    def logits(self, hidden: Floats, adapters: Sequence[ActiveAdapter | None] = ()) -> Floats:
        """hidden: (n, hidden), rows of `StepRows.hidden` → (n, vocab) float32. adapters: of each row; none is the base."""
        return self._decoder.logits(hidden, adapters)

    def arrange(self, tensors: AdapterTensors) -> CpuAdapter:
        """See Runner.arrange."""
        return self._decoder.arrange(tensors)


def _drop(mapped: Array) -> None:
    machine.drop_mapped_pages(mapped.ctypes.data, mapped.nbytes)
