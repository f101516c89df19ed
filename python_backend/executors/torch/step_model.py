"""StepModel: the decoder that an engine and a device allow, compiled or eager, behind one call a step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.cpu.abi import open_library
from trierarch.python_backend.executors.cpu.decoder import CompiledDecoder
from trierarch.python_backend.executors.cpu.paged_batch import PagedBatch
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.machine import drop_mapped_pages
from trierarch.python_backend.executors.torch.model import Decoder
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES, Weights, load_weights
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepRows:
    """A step's hidden states and whose they are."""

    items: Sequence[ScheduledSequence]
    first_rows: Sequence[int]
    """Row of each item's first token in `hidden`, [num_sequences]."""
    hidden: torch.Tensor  # (num_tokens, hidden), before the last norm


class StepModel(Protocol):
    """Computes a step's tokens."""

    def compute(self, plan: Plan, kv: KvArrays) -> StepRows:
        """Run the layers over the plan's tokens, drafts included, storing their keys and values."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (n, hidden), rows of `StepRows.hidden` → (n, vocab) float32."""
        ...


def open_model(engine: Path, manifest: EngineManifest, device: torch.device) -> StepModel:
    """Load the weights: for the engine's compiled kernels on the CPU, else for torch's operators.

    Raises:
        EngineError: the weights or the compiled kernels are missing, corrupt or not what the manifest says.
        ResourceError: there is no room.
    """
    weights = load_weights(engine, manifest, device)
    if device.type != "cpu":
        return EagerModel(manifest, weights, device)
    if manifest.kernels is None:
        logger.warning("%s has no compiled kernels: it runs eagerly, several times slower", manifest.name)
        return EagerModel(manifest, weights, device)
    return CompiledModel(engine / manifest.kernels, manifest, weights)


class EagerModel:
    """Torch's own operators, on any device."""

    def __init__(self, manifest: EngineManifest, weights: Weights, device: torch.device) -> None:
        self._architecture = manifest.architecture
        self._block_size = manifest.kv_cache.block_size
        self._windows = frozenset(layer.window for layer in manifest.architecture.layers)
        self._dtype = TORCH_DTYPES[manifest.dtype]
        self._device = device
        self._decoder = Decoder(manifest.architecture, weights, self._dtype)

    def compute(self, plan: Plan, kv: KvArrays) -> StepRows:
        """See StepModel.compute."""
        shape = BlockShape(self._block_size, self._architecture.num_kv_heads, kv.padding_block)
        batch = InputBatch.build(plan, self._windows, shape, self._dtype, self._device)
        if len(batch.fresh_blocks):
            kv.clear(batch.fresh_blocks)
        return StepRows(batch.items, batch.first_rows, self._decoder.hidden(batch, kv))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See StepModel.logits."""
        return self._decoder.logits(hidden)


class CompiledModel:
    """The engine's compiled kernels. They read no slot that was not written, so blocks need no clearing."""

    def __init__(self, library: Path, manifest: EngineManifest, weights: Weights) -> None:
        """weights: as `load_weights` maps them. Packed copies take their place in memory, so their pages go."""
        self._block_size = manifest.kv_cache.block_size
        num_threads = torch.get_num_threads()
        self._decoder = CompiledDecoder(
            open_library(library),
            manifest.architecture,
            manifest.dtype,
            manifest.kv_cache.dtype,
            weights,
            num_threads,
            drop_mapped_pages,
        )

    def compute(self, plan: Plan, kv: KvArrays) -> StepRows:
        """See StepModel.compute."""
        batch = PagedBatch.build(plan, self._block_size)
        return StepRows(batch.items, batch.first_rows, self._decoder.hidden(batch, kv))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See StepModel.logits."""
        return self._decoder.logits(hidden)
