"""A GGUF file's metadata, said as the Hugging Face configuration that the table of architectures reads.

Key names: the GGUF specification (ggml-org/ggml, docs/gguf.md). What a kind of file leaves unsaid is what llama.cpp
fixes for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from trierarch.builder.errors import CheckpointError
from trierarch.builder.hf_config import HfConfig
from trierarch.builder.validation import validated

Metadata = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """How one `general.architecture` is read."""

    architecture: str
    """Hugging Face's name for it."""
    is_interleaved: bool = False
    """Whether rows of q and k are stored for rotation of neighbours, not of halves."""
    fixed: Mapping[str, Any] | None = None
    """Configuration that the file leaves unsaid."""


KINDS: Final[Mapping[str, Kind]] = {
    "llama": Kind("LlamaForCausalLM", is_interleaved=True),
    "smollm3": Kind("SmolLM3ForCausalLM", is_interleaved=True, fixed={"no_rope_layer_interval": 4}),
    "qwen2": Kind("Qwen2ForCausalLM"),
    "qwen3": Kind("Qwen3ForCausalLM"),
    "qwen3moe": Kind("Qwen3MoeForCausalLM", fixed={"norm_topk_prob": True}),
    "phi3": Kind("Phi3ForCausalLM"),
    "gemma2": Kind("Gemma2ForCausalLM"),
    "gemma3": Kind("Gemma3ForCausalLM", fixed={"attn_logit_softcapping": None}),
}

_PLAIN_KEYS: Final = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.freq_base_swa": "rope_local_base_freq",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_GEMMA_27B_LAYERS: Final = {"gemma2": 46, "gemma3": 62}


class _Rope(BaseModel):
    """The keys about rotary embeddings that need more than another name."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    dimension_count: int | None = Field(default=None, alias="rope.dimension_count", gt=0)
    kind: str = Field(default="none", alias="rope.scaling.type")
    factor: float | None = Field(default=None, alias="rope.scaling.factor", gt=0)
    attention_factor: float | None = Field(default=None, alias="rope.scaling.attn_factor", gt=0)
    beta_fast: float | None = Field(default=None, alias="rope.scaling.yarn_beta_fast", gt=0)
    beta_slow: float | None = Field(default=None, alias="rope.scaling.yarn_beta_slow", gt=0)


def find_kind(metadata: Metadata) -> tuple[str, Kind]:
    """The row for a file's `general.architecture`.

    Raises:
        CheckpointError: it is missing or not in the table, or the file is one of several parts.
    """
    name = metadata.get("general.architecture")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or kind is None:
        raise CheckpointError(f"general.architecture is {name!r}: this builder reads {', '.join(KINDS)}")
    if metadata.get("split.count", 1) not in (0, 1):
        raise CheckpointError("the GGUF is split in parts; join them with: llama-gguf-split --merge")
    if name == "llama" and metadata.get("llama.expert_count"):
        return name, Kind("MixtralForCausalLM", is_interleaved=True)
    return name, kind


def synthesize_config(
    metadata: Metadata, vocab_size: int, tensor_names: set[str], rope_factors: Mapping[str, list[float]]
) -> dict[str, Any]:
    """The `config.json` that this file stands for.

    `rope_factors` holds the file's own divisors of the frequencies: `freqs`, or `short` and `long`.

    Raises:
        CheckpointError: a value is missing or out of range.
    """
    name, kind = find_kind(metadata)
    values = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    rope = validated(_Rope, values, f"{name}.")
    config: dict[str, Any] = {
        "architectures": [kind.architecture],
        "vocab_size": vocab_size,
        "tie_word_embeddings": "output.weight" not in tensor_names,
        "attention_bias": "blk.0.attn_q.bias" in tensor_names,
        **{ours: values[theirs] for theirs, ours in _PLAIN_KEYS.items() if theirs in values},
        **(kind.fixed or {}),
        "rope_scaling": _rope_scaling(rope, rope_factors),
    }
    parsed = HfConfig.parse(config, "the GGUF's metadata")
    head_dim = config["head_dim"] = parsed.size_of_head
    if values.get("attention.value_length", head_dim) != head_dim:
        raise CheckpointError(f"{name}.attention.value_length differs from key_length: such heads are not supported")
    if name in _GEMMA_27B_LAYERS:
        is_27b = parsed.num_hidden_layers == _GEMMA_27B_LAYERS[name]
        config["query_pre_attn_scalar"] = parsed.hidden_size // parsed.num_attention_heads if is_27b else head_dim
    if rope.dimension_count is not None and name not in _GEMMA_27B_LAYERS:
        config["partial_rotary_factor"] = rope.dimension_count / head_dim
    return config


def _rope_scaling(rope: _Rope, rope_factors: Mapping[str, list[float]]) -> dict[str, Any] | None:
    if "freqs" in rope_factors:
        # llama.cpp stores what the llama3 rule divides each frequency by: LongRoPE with one list and no factor.
        freqs = rope_factors["freqs"]
        return {"rope_type": "longrope", "short_factor": freqs, "long_factor": freqs, "attention_factor": 1.0}
    if "long" in rope_factors:
        return {
            "rope_type": "longrope",
            "short_factor": rope_factors.get("short"),
            "long_factor": rope_factors["long"],
            "attention_factor": rope.attention_factor,
        }
    if rope.kind == "none":
        return None
    attention_factor = rope.attention_factor
    if rope.kind == "yarn" and attention_factor and rope.factor:
        attention_factor *= 0.1 * math.log(rope.factor) + 1.0  # GGUF keeps what comes on top of YaRN's own
    return {
        "rope_type": rope.kind,
        "factor": rope.factor,
        "attention_factor": attention_factor,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
    }
