"""A TensorRT-LLM checkpoint: `config.json`, and for each GPU a `rankN.safetensors` with its part of every matrix.

Names and layout, from the "unified checkpoint" of TensorRT-LLM's documentation and its convert.py of each family. Linear
weights are (out_features, in_features); i counts the layers of the rank, not of the model; P is the number of places of a
stage, and p a rank's own.

    transformer.vocab_embedding.weight        rows of p, filled up with zeros to a multiple of P; first stage
    transformer.layers.{i}.input_layernorm.weight
    transformer.layers.{i}.attention.qkv.weight, .bias       rows of p: its q, its k, its v
    transformer.layers.{i}.attention.q_layernorm.weight, k_layernorm.weight
    transformer.layers.{i}.attention.dense.weight            columns of p; .bias whole
    transformer.layers.{i}.post_layernorm.weight             before the MLP; in Gemma 2 and 3 after attention,
        and pre_feedforward_layernorm, post_feedforward_layernorm around the MLP
    transformer.layers.{i}.mlp.fc.weight, mlp.gate.weight    rows of p: Hugging Face's gate_proj, its up_proj; with .bias
        where the MLP is fused, mlp.fc alone: rows of up, then of gate
    transformer.layers.{i}.mlp.proj.weight                   columns of p of down_proj; .bias whole
    transformer.layers.{i}.mlp.router.weight                 float32; with experts, mlp.fc (E, 2I/P, H) up then gate, and
        mlp.proj (E, H, I/P)
    transformer.ln_f.weight, lm_head.weight                  last stage; lm_head's rows as the embedding's, tied or not
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Mapping as Names
from dataclasses import replace
from typing import Any, Final

from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.decoder import Decoder
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import Architecture, DType
from trierarch.builder.mapping import Mapping, Rank
from trierarch.builder.tensorrt_llm.families import EngineFamily
from trierarch.builder.tensorrt_llm.shard import Range, Shard
from trierarch.builder.weight import Weight
from trierarch.builder.weights import plan_weights
from trierarch.builder.weights_file import CheckpointWeights, WeightsFile

CONFIG_NAME: Final = "config.json"
_NORMS: Final = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_layernorm",
    "q_norm": "attention.q_layernorm",
    "k_norm": "attention.k_layernorm",
}
_GEMMA_NORMS: Final = {
    **_NORMS,
    "post_attn_norm": "post_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def rank_name(index: int) -> str:
    """File of a rank."""
    return f"rank{index}.safetensors"


def config_bytes(config: Names[str, Any]) -> bytes:
    """`config.json`; equal ones give equal bytes."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def plan_ranks(
    decoder: Decoder, checkpoint: Checkpoint, dtype: DType, family: EngineFamily, mapping: Mapping
) -> dict[str, WeightsFile]:
    """Each rank's file by name, unquantised.

    Raises:
        CheckpointError: tensors are missing, misshapen, or nobody's.
        ConfigError: the model cannot be split so.
    """
    mapping.check(decoder.architecture)
    if mapping.pipeline_parallel_size > 1 and not family.has_pipeline:
        raise ConfigError(
            f"pipeline_parallel_size is {mapping.pipeline_parallel_size}: TensorRT-LLM's engines of "
            f"{decoder.architecture.family} have no pipeline; split it with --tensor-parallel-size"
        )
    weights = {one.name: one for one in plan_weights(decoder, checkpoint, dtype)}
    writer = _Writer(decoder.architecture, weights, dtype, family, mapping)
    return {
        rank_name(rank.index): CheckpointWeights(checkpoint, tuple(writer.shards(rank))) for rank in mapping.ranks()
    }


class _Writer:
    """Cuts a model's weights for ranks."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Names[str, Weight],
        dtype: DType,
        family: EngineFamily,
        mapping: Mapping,
    ) -> None:
        self._architecture, self._weights, self._dtype = architecture, weights, dtype
        self._family, self._mapping = family, mapping

    def shards(self, rank: Rank) -> Iterator[Shard]:
        """Everything in the file of `rank`."""
        if self._mapping.is_first(rank):
            yield self._vocabulary("transformer.vocab_embedding.weight", "embed.weight", rank)
        for local, index in enumerate(self._mapping.layers(rank, self._architecture.num_layers)):
            yield from self._layer(f"transformer.layers.{local}.", f"layers.{index}.", rank)
        if self._mapping.is_last(rank):
            yield self._whole("transformer.ln_f.weight", "norm.weight")
            head = "embed.weight" if self._architecture.tie_embeddings else "lm_head.weight"
            yield self._vocabulary("lm_head.weight", head, rank)

    def _layer(self, target: str, source: str, rank: Rank) -> Iterator[Shard]:
        norms = _GEMMA_NORMS if self._architecture.post_norms else _NORMS
        for ours, theirs in norms.items():
            if f"{source}{ours}.weight" in self._weights:
                yield self._whole(f"{target}{theirs}.weight", f"{source}{ours}.weight")
        yield from self._rows(f"{target}attention.qkv", f"{source}qkv", self._qkv_rows(rank))
        yield from self._columns(f"{target}attention.dense", f"{source}o", rank)
        if f"{source}router.weight" in self._weights:
            yield from self._experts(f"{target}mlp.", source, rank)
            return
        inner = self._architecture.intermediate_size
        gate = self._mapping.split(inner, rank.place)
        up = (inner + gate[0], inner + gate[1])
        if self._family.is_mlp_fused:
            yield from self._rows(f"{target}mlp.fc", f"{source}gate_up", (up, gate))
        else:
            yield from self._rows(f"{target}mlp.fc", f"{source}gate_up", (gate,))
            yield from self._rows(f"{target}mlp.gate", f"{source}gate_up", (up,))
        yield from self._columns(f"{target}mlp.proj", f"{source}down", rank)

    def _qkv_rows(self, rank: Rank) -> tuple[Range, ...]:
        architecture, size = self._architecture, self._architecture.head_dim
        begin, end = self._mapping.split(architecture.num_heads, rank.place)
        kv_begin, kv_end = self._mapping.kv_heads(architecture.num_kv_heads, rank.place)
        keys = architecture.num_heads
        values = keys + architecture.num_kv_heads
        heads = ((begin, end), (keys + kv_begin, keys + kv_end), (values + kv_begin, values + kv_end))
        return tuple((first * size, last * size) for first, last in heads)

    def _experts(self, target: str, source: str, rank: Rank) -> Iterator[Shard]:
        moe, hidden = self._architecture.moe, self._architecture.hidden_size
        assert moe is not None
        router = replace(self._weights[f"{source}router.weight"], dtype=DType.FLOAT32)
        yield Shard(f"{target}router.weight", router.shape, router, ((0, moe.num_experts),))
        inner = moe.intermediate_size
        begin, end = self._mapping.split(inner, rank.place)
        rows = tuple(
            (expert * 2 * inner + half + begin, expert * 2 * inner + half + end)
            for expert in range(moe.num_experts)
            for half in (inner, 0)  # up, then gate
        )
        share = end - begin
        gate_up = self._weights[f"{source}experts.gate_up.weight"]
        yield Shard(f"{target}fc.weight", (moe.num_experts, 2 * share, hidden), gate_up, rows)
        down = self._weights[f"{source}experts.down.weight"]
        every = ((0, moe.num_experts * hidden),)
        yield Shard(f"{target}proj.weight", (moe.num_experts, hidden, share), down, every, (begin, end))

    def _rows(self, target: str, source: str, rows: tuple[Range, ...]) -> Iterator[Shard]:
        count = sum(end - begin for begin, end in rows)
        weight = self._weights[f"{source}.weight"]
        yield Shard(f"{target}.weight", (count, weight.shape[1]), weight, rows)
        if f"{source}.bias" in self._weights:
            yield Shard(f"{target}.bias", (count,), self._weights[f"{source}.bias"], rows)

    def _columns(self, target: str, source: str, rank: Rank) -> Iterator[Shard]:
        weight = self._weights[f"{source}.weight"]
        height, width = weight.shape
        begin, end = self._mapping.split(width, rank.place)
        yield Shard(f"{target}.weight", (height, end - begin), weight, ((0, height),), (begin, end))
        if f"{source}.bias" in self._weights:  # added once, after the parts were summed
            yield self._whole(f"{target}.bias", f"{source}.bias")

    def _vocabulary(self, target: str, source: str, rank: Rank) -> Shard:
        rows = self._mapping.split(self._mapping.padded_vocab_size(self._architecture.vocab_size), rank.place)
        weight = self._weights[source]
        return Shard(target, (rows[1] - rows[0], weight.shape[1]), weight, (rows,))

    def _whole(self, target: str, source: str) -> Shard:
        weight = replace(self._weights[source], dtype=self._dtype)
        return Shard(target, weight.shape, weight, ((0, weight.shape[0]),))
