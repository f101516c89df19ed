"""EagerModel: the decoder operator by operator, on any device; which operators, `Operators` says."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.following import StepRows
from trierarch.python_backend.executors.torch.adapter import TorchAdapter
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.drawn_tokens import DrawnTokens, LateTokens
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.model import Decoder
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.parts import Parts
from trierarch.python_backend.executors.torch.static_step import StepLayout
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES, Weights
from trierarch.python_backend.scheduling.plan import Plan


class EagerModel:
    """Computes a step's tokens."""

    def __init__(
        self,
        manifest: EngineManifest,
        weights: Weights,
        device: torch.device,
        taps: tuple[int, ...] = (),
        parts: Parts | None = None,
    ) -> None:
        """weights: as `load_weights` maps them. taps: as `Head.taps`, of the head that reads along. parts: see Decoder."""
        self.operators = Operators.best(manifest, device)
        self._architecture = manifest.architecture
        self._block_size = manifest.kv_cache.block_size
        self._windows = frozenset(layer.window for layer in manifest.architecture.layers)
        self._dtype = TORCH_DTYPES[manifest.dtype]
        self._device = device
        self._taps = taps
        self._decoder = Decoder(
            manifest.architecture, weights, self._dtype, self.operators.adapters, parts, self.operators.layers
        )

    def compute(self, plan: Plan, kv: KvArrays, drawn: DrawnTokens | None = None) -> StepRows[torch.Tensor]:
        """Run the layers over the plan's tokens, drafts included, storing their keys and values. drawn: what is late of them."""
        batch = InputBatch.build(
            plan, self._windows, self._shape(kv), self._dtype, self._device, self.operators.attention
        )
        if (late := LateTokens.of(batch.items, batch.first_rows, drawn)) is not None:
            late.put(batch.token_ids)
        if len(batch.fresh_blocks):
            kv.clear(batch.fresh_blocks)
        *tapped, hidden = self.decode(batch, kv)
        return StepRows(batch.items, batch.first_rows, hidden, torch.cat(tapped, 1) if tapped else None)

    def decode(self, batch: InputBatch, kv: KvArrays) -> list[torch.Tensor]:
        """Hidden states behind each tap, and behind the last layer: (num_tokens, hidden) each."""
        return self._decoder.hidden_after(batch, kv, (*self._taps, self._architecture.num_layers))

    def static_layout(self, kv: KvArrays, max_seq_len: int, max_queries: int) -> StepLayout | None:
        """Of decode steps of sequences of at most `max_seq_len` tokens; None where the operators have no static steps.

        max_queries: as in StepLayout.
        """
        attention = self.operators.static_attention
        if attention is None:
            return None
        table_width = -(-max_seq_len // self._block_size)
        adapters = self.operators.static_adapters
        return StepLayout(self._windows, self._shape(kv), self._dtype, table_width, max_queries, attention, adapters)

    def _shape(self, kv: KvArrays) -> BlockShape:
        return BlockShape(self._block_size, self._architecture.num_kv_heads, kv.padding_block)

    def logits(self, hidden: torch.Tensor, adapters: Sequence[ActiveAdapter | None] = ()) -> torch.Tensor:
        """hidden: (n, hidden), rows of `StepRows.hidden` → (n, vocab) float32. adapters: of each row; none is the base."""
        return self._decoder.logits(hidden, adapters)

    def arrange(self, tensors: AdapterTensors) -> TorchAdapter:
        """See Runner.arrange."""
        return TorchAdapter(self._architecture, tensors, self._device)
