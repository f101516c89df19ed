"""Ceiling: the rate of decoding that a machine allows for a model, whatever the engine: its roofline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from trierarch.benchmarks.engine import Footprint
from trierarch.builder.manifest import Architecture, EngineManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """A step reads the weights once, and for each sequence the keys and values of its context; and it multiplies."""

    weight_bytes: int
    """That one step reads."""
    kv_bytes: int
    """Of one token's keys and values in all layers."""
    matrix_flops: float
    """Of one token in all matrices; a multiply-add is two."""
    attention_flops: float
    """Of one token for each token that it attends to."""

    @classmethod
    def of(cls, manifest: EngineManifest) -> Self:
        """Of an engine of a dense model without attention windows."""
        architecture = manifest.architecture
        heads = architecture.num_layers * architecture.num_heads * architecture.head_dim
        return cls(
            weight_bytes=Footprint.of(manifest).streamed,
            kv_bytes=manifest.kv_cache.bytes_per_token,
            matrix_flops=2.0 * _num_elements(architecture),
            attention_flops=2.0 * 2 * heads,  # queries times keys, weights times values
        )

    def tokens_per_second(self, num_sequences: int, context: float, read_gb_per_s: float, gflop_per_s: float) -> float:
        """Of all sequences together, each attending to `context` tokens: bound by bytes or by arithmetic."""
        num_bytes = self.weight_bytes + num_sequences * context * self.kv_bytes
        flops = num_sequences * (self.matrix_flops + context * self.attention_flops)
        return num_sequences / max(num_bytes / (read_gb_per_s * 1e9), flops / (gflop_per_s * 1e9))


def _num_elements(architecture: Architecture) -> int:
    """Of the matrices that each token is multiplied with."""
    hidden, head_dim = architecture.hidden_size, architecture.head_dim
    qkv_and_o = (2 * architecture.num_heads + 2 * architecture.num_kv_heads) * head_dim * hidden
    gate_up_and_down = 3 * architecture.intermediate_size * hidden
    return architecture.num_layers * (qkv_and_o + gate_up_and_down) + architecture.vocab_size * hidden
