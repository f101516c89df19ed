"""Decoder: every family of transformer that the manifest can describe, driven by its `Architecture` as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from trierarch.builder.manifest import Architecture, Layer
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows, AdapterBackend, rows_of, rows_of_step
from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.eager_layers import EagerLayers
from trierarch.python_backend.executors.torch.embedding import Embedding
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays, LayerKv
from trierarch.python_backend.executors.torch.layer_backend import Heads, LayerBackend, Norm
from trierarch.python_backend.executors.torch.mlp import GatedMlp
from trierarch.python_backend.executors.torch.moe import MoeMlp
from trierarch.python_backend.executors.torch.parts import Parts, Whole
from trierarch.python_backend.executors.torch.residual import Residual
from trierarch.python_backend.executors.torch.rope import Rotation
from trierarch.python_backend.executors.torch.scope import Scope
from trierarch.python_backend.executors.torch.weights import Weights

Embed = Callable[[torch.Tensor, AdaptedRows | None], torch.Tensor]
"""As an Embedding."""


class Decoder:
    """Token ids → hidden states → logits. Reads and writes the KV arrays; holds no state of a sequence."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        dtype: torch.dtype,
        adapters: AdapterBackend,
        parts: Parts | None = None,
        backend: LayerBackend | None = None,
    ) -> None:
        """weights: as `load_weights` returns them. dtype: of activations. adapters: who computes them.

        parts: the others, where it is one of several. backend: who computes the layers; None is the reference.
        """
        parts, backend = parts or Whole(), backend or EagerLayers()
        self._architecture = architecture
        self._adapters = adapters
        outer = Scope(weights, "", backend)
        self._embed: Embed = parts.receive
        if "embed.weight" in weights:
            self._embed = Embedding(weights["embed.weight"], architecture.embedding_scale, dtype)
        self._ropes = outer.ropes(architecture)
        self._layers = tuple(
            DecoderLayer(architecture, layer, Scope(weights, f"layers.{index}.", backend), parts)
            for index, layer in enumerate(architecture.layers)
        )
        self._norm = outer.norm("norm", architecture)
        self._lm_head = outer.linear("embed" if architecture.tie_embeddings else "lm_head", known_as="lm_head")

    def hidden(self, batch: InputBatch, kv: KvArrays) -> torch.Tensor:
        """Run the layers, storing the batch's keys and values. Returns (num_tokens, hidden), before the last norm."""
        return self.hidden_after(batch, kv, (len(self._layers),))[0]

    def hidden_after(self, batch: InputBatch, kv: KvArrays, counts: Sequence[int]) -> list[torch.Tensor]:
        """The same, and what `hidden` would return after so many layers each. All layers run."""
        adapted = batch.adapted or self._adapters.adapt(rows_of_step(batch.items, batch.first_rows))
        embedded = self._embed(batch.token_ids, adapted)
        rotations = [rope(batch.positions, embedded.dtype) for rope in self._ropes]
        x = Residual(embedded)
        states = {}
        for count, (layer, layer_kv) in enumerate(zip(self._layers, kv.layers, strict=True), start=1):
            x = layer(x, batch, layer_kv, rotations, adapted)
            if count in counts:
                states[count] = x.total()
                x = Residual(states[count])
        return [states[count] for count in counts]

    def logits(self, hidden: torch.Tensor, adapters: Sequence[ActiveAdapter | None] = ()) -> torch.Tensor:
        """hidden: (n, hidden), rows of what `hidden` returned → (n, vocab) float32.

        adapters: of each row; none at all is the base model.
        """
        logits = self._lm_head(self._norm(hidden), self._adapters.adapt(rows_of(adapters))).float()
        cap = self._architecture.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x)), with the norms and biases that the architecture names."""

    def __init__(self, architecture: Architecture, layer: Layer, scope: Scope, parts: Parts | None = None) -> None:
        self._layer = layer
        self._parts = parts or Whole()
        self.attn_norm = scope.norm("attn_norm", architecture)
        self._qkv = scope.linear("qkv")
        self._num_qkv_heads = architecture.num_heads + 2 * architecture.num_kv_heads
        self._heads = _heads(architecture, scope)
        self._attention = AttentionShape(
            architecture.num_kv_heads, architecture.attention_scale, architecture.attention_softcap
        )
        self._o = scope.linear("o")
        self._mlp_norm = scope.norm("mlp_norm", architecture)
        self._mlp = _moe(architecture, scope) if layer.is_moe else _mlp(architecture, scope)
        self._post_attn_norm = scope.norm("post_attn_norm", architecture) if architecture.post_norms else None
        self._post_mlp_norm = scope.norm("post_mlp_norm", architecture) if architecture.post_norms else None

    def __call__(
        self,
        x: Residual,
        batch: InputBatch,
        kv: LayerKv,
        rotations: list[Rotation],
        adapted: AdaptedRows | None = None,
    ) -> Residual:
        """x: (num_tokens, hidden), and so the result. rotations: one for each of the architecture's ropes."""
        total, normed = self.attn_norm.of_sum(x)
        return self.mix(total, normed, batch, kv, rotations, adapted)

    def mix(
        self,
        x: torch.Tensor,
        normed: torch.Tensor,
        batch: InputBatch,
        kv: LayerKv,
        rotations: list[Rotation],
        adapted: AdaptedRows | None = None,
    ) -> Residual:
        """The same where attention reads `normed`, (num_tokens, inputs of qkv), in place of norm(x)."""
        attended = self._parts.sum(self._attend(normed, batch, kv, rotations, adapted))
        x, normed = self._mlp_norm.of_sum(Residual(x, _normed(attended, self._post_attn_norm)))
        mixed = self._parts.sum(self._mlp(normed, adapted))
        return Residual(x, _normed(mixed, self._post_mlp_norm))

    def _attend(
        self,
        x: torch.Tensor,
        batch: InputBatch,
        kv: LayerKv,
        rotations: list[Rotation],
        adapted: AdaptedRows | None,
    ) -> torch.Tensor:
        heads = self._qkv(x, adapted).view(len(x), self._num_qkv_heads, -1)
        rotation = None if self._layer.rope is None else rotations[self._layer.rope]
        queries = self._heads(heads, rotation, kv, batch.kv_rows)
        return self._o(batch.attention[self._layer.window](queries, kv, self._attention), adapted)


def _normed(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    return x if norm is None else norm(x)


def _heads(architecture: Architecture, scope: Scope) -> Heads:
    num_heads, num_kv_heads = architecture.num_heads, architecture.num_kv_heads
    weight = None
    if architecture.qk_norm:
        queries, keys = scope.tensor("q_norm.weight"), scope.tensor("k_norm.weight")
        weight = torch.cat((queries.expand(num_heads, -1), keys.expand(num_kv_heads, -1)))
    return scope.backend.heads(num_heads, num_kv_heads, weight, architecture.norm_eps)


def _mlp(architecture: Architecture, scope: Scope) -> GatedMlp:
    return GatedMlp(scope.linear("gate_up"), scope.linear("down"), scope.backend.gate(architecture.activation))


def _moe(architecture: Architecture, scope: Scope) -> MoeMlp:
    assert architecture.moe is not None
    gate_up, down = (scope.matrix(f"experts.{name}.weight") for name in ("gate_up", "down"))
    experts = scope.backend.experts(gate_up, down, architecture.activation)
    return MoeMlp(scope.linear("router"), experts, architecture.moe)
