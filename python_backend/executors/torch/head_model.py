"""TorchHead: a head on another model's hidden states, by torch's own operators, on any device.

Two kinds, which `builder/manifest.py` lays out: EAGLE-3 (Li et al., arXiv 2503.01840) and multi-token prediction layers as
MiMo has them (after DeepSeek-V3, arXiv 2412.19437). A row takes a hidden state and the embedding of the token after it.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import torch

from trierarch.builder.manifest import DrafterKind, EngineManifest
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.embedding import Embedding
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.model import DecoderLayer
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.residual import Residual
from trierarch.python_backend.executors.torch.scope import Scope
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES, load_weights
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence


class TorchHead:
    """Implements HeadModel. Owns keys and values of its layer, and decides nothing."""

    @torch.inference_mode()
    def __init__(self, engine: Path, manifest: EngineManifest, num_blocks: int, device: torch.device) -> None:
        """Load the head in `engine`, over `num_blocks` blocks.

        Raises:
            EngineError: the weights are missing, corrupt or not what the manifest says.
            ResourceError: the keys and values do not fit.
        """
        assert manifest.head is not None
        architecture = manifest.architecture
        weights = load_weights(engine, manifest, device)
        operators = Operators.best(manifest, device)
        outer, own = (Scope(weights, prefix, operators.layers) for prefix in ("", "head."))
        self._head = manifest.head
        self._is_mtp = manifest.head.kind is DrafterKind.MTP
        self._device = device
        self._dtype = TORCH_DTYPES[manifest.dtype]
        self._window = architecture.layers[0].window
        self._attention = operators.attention
        self._embed = Embedding(weights["embed.weight"], architecture.embedding_scale, self._dtype)
        self._fc = own.linear("fc")
        self._hidden_norm = own.norm("hidden_norm", architecture)
        self._token_norm = own.norm("token_norm", architecture) if self._is_mtp else None
        self._ropes = outer.ropes(architecture)
        self._layer = DecoderLayer(architecture, architecture.layers[0], Scope(weights, "layers.0.", operators.layers))
        self._norm = outer.norm("norm", architecture)
        self._lm_head = outer.linear("lm_head")
        self._target_ids = own.tensor("target_ids")
        self._kv = KvArrays(num_blocks, architecture, manifest.kv_cache, device)
        self._shape = BlockShape(manifest.kv_cache.block_size, architecture.num_kv_heads, self._kv.padding_block)

    @property
    def kv_arrays(self) -> tuple[torch.Tensor, ...]:
        """See HeadModel.kv_arrays."""
        return self._kv.arrays

    @torch.inference_mode()
    def fuse(self, tapped: Any, rows: Rows[int]) -> torch.Tensor:
        """See HeadModel.fuse. tapped: a tensor, or an array of numpy."""
        chosen = torch.as_tensor(tapped)[list(rows)].to(self._device, self._dtype)
        return chosen if self._is_mtp else self._fc(chosen)

    @torch.inference_mode()
    def run(self, items: Rows[ScheduledSequence], hidden: torch.Tensor) -> list[torch.Tensor]:
        """See HeadModel.run."""
        batch = InputBatch.build(
            Plan(tuple(items)), (self._window,), self._shape, self._dtype, self._device, self._attention
        )
        if len(batch.fresh_blocks):
            self._kv.clear(batch.fresh_blocks)
        output = self._outputs(batch, hidden[self._order(items, batch)])
        ends = (*batch.first_rows[1:], batch.num_tokens)
        last = {item.sequence.sequence_id: output[end - 1] for item, end in zip(batch.items, ends, strict=True)}
        return [last[item.sequence.sequence_id] for item in items]

    @torch.inference_mode()
    def guess(self, outputs: Rows[torch.Tensor]) -> list[int]:
        """See HeadModel.guess."""
        rows = self.stack(outputs)
        logits = self._lm_head(rows if self._is_mtp else self._norm(rows))
        token_ids: list[int] = self._target_ids[logits.argmax(1)].tolist()
        return token_ids

    @torch.inference_mode()
    def stack(self, outputs: Rows[torch.Tensor]) -> torch.Tensor:
        """See HeadModel.stack."""
        return torch.stack(list(outputs))

    def _outputs(self, batch: InputBatch, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (num_tokens, hidden), in the batch's order, and so the result: what takes a hidden state's place."""
        tokens = self._embed(batch.token_ids)
        rotations = [rope(batch.positions, self._dtype) for rope in self._ropes]
        kv = self._kv.layers[0]
        if self._token_norm is None:
            normed = self._hidden_norm(hidden)
            residual = normed if self._head.norm_before_residual else hidden
            both = torch.cat((self._layer.attn_norm(tokens), normed), 1)
            return self._layer.mix(residual, both, batch, kv, rotations).total()
        # As in MiMo's own serving code: the first row is trained without its token.
        tokens = tokens.masked_fill((batch.positions == 0)[:, None], 0.0)
        x = self._fc(torch.cat((self._hidden_norm(hidden), self._token_norm(tokens)), 1))
        return self._norm.of_sum(self._layer(Residual(x), batch, kv, rotations))[1]

    def _order(self, items: Rows[ScheduledSequence], batch: InputBatch) -> torch.Tensor:
        """Rows of the items, one after the other, in the order that the batch has them. (num_tokens) int64"""
        rows: dict[int, range] = {}
        first = 0
        for item in items:
            count = item.num_tokens + len(item.draft_token_ids)
            rows[item.sequence.sequence_id] = range(first, first + count)
            first += count
        order = [row for item in batch.items for row in rows[item.sequence.sequence_id]]
        return torch.tensor(order, dtype=torch.int64, device=self._device)
