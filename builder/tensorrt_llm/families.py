"""The table of families that TensorRT-LLM knows, by the name that Hugging Face's architecture has.

Engine flow: MODEL_MAP of its tensorrt_llm/models/__init__.py and the configuration classes beside it, 1.0 to 1.2. PyTorch
flow: "Supported Models" of its documentation, 1.0 to 1.3. To add one, add a row, and a test against transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trierarch.builder.decoder import Decoder
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.manifest import Architecture, Flow

LOCAL_ROPE: Final = 1
"""Index of the rotary embedding of Gemma 3's sliding layers."""

Extras = Callable[[Decoder], dict[str, Any]]
"""What a family's config.json has beyond the keys that all have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFamily:
    """How one family is written as a TensorRT-LLM checkpoint."""

    architecture: str
    """As TensorRT-LLM names it."""
    extras: Extras
    is_mlp_fused: bool = False
    """Whether `mlp.fc` holds up and gate, in this order, and there is no `mlp.gate`."""
    has_pipeline: bool = True
    exporter: str | None = None
    """What nvidia-modelopt calls the decoder; None where it writes no TensorRT-LLM checkpoint of it."""


def _llama(decoder: Decoder) -> dict[str, Any]:
    architecture = decoder.architecture
    if architecture.qkv_bias != architecture.o_bias:
        raise CheckpointError(f"{architecture.family} with biases in q, k and v alone is not TensorRT-LLM's")
    return {"attn_bias": architecture.qkv_bias, "mlp_bias": architecture.mlp_bias, **_moe(architecture)}


def _qwen(kind: str) -> Extras:
    def extras(decoder: Decoder) -> dict[str, Any]:
        architecture = decoder.architecture
        # Qwen 2 always has a bias here and Qwen 3 never, whatever the configuration says (QWenConfig).
        if architecture.qkv_bias != (kind == "qwen2") or architecture.o_bias:
            raise CheckpointError(
                f"{architecture.family}: config.json says attention_bias is {architecture.qkv_bias}, which TensorRT-LLM's "
                "engines of it do not have; build it with --tensorrt-llm-version 1.3"
            )
        moe = architecture.moe
        inner = (
            {"moe_intermediate_size": moe.intermediate_size, "moe_shared_expert_intermediate_size": 0} if moe else {}
        )
        return {"qwen_type": kind, "attn_bias": architecture.qkv_bias, "mlp_bias": False, **inner, **_moe(architecture)}

    return extras


def _phi3(decoder: Decoder) -> dict[str, Any]:
    architecture, (rope,) = decoder.architecture, decoder.rope_settings
    if architecture.head_dim * architecture.num_heads != architecture.hidden_size:
        raise CheckpointError(
            f"{architecture.family}: {architecture.num_heads} heads of {architecture.head_dim} are not its hidden_size "
            f"{architecture.hidden_size}, as TensorRT-LLM's engines of it take for granted; build it with "
            "--tensorrt-llm-version 1.3"
        )
    extras: dict[str, Any] = {"rotary_pct": rope.rotary_dim / architecture.head_dim}
    if rope.kind == "longrope":
        extras |= {
            "position_embedding_type": "long_rope",
            "original_max_position_embeddings": rope.original_max_position_embeddings,
            "longrope_scaling_short_factors": list(rope.parameters.short_factor or ()),
            "longrope_scaling_long_factors": list(rope.parameters.long_factor or ()),
        }
    return extras


def _gemma(decoder: Decoder) -> dict[str, Any]:
    architecture = decoder.architecture
    return {
        "attn_bias": False,
        "mlp_bias": False,
        "query_pre_attn_scalar": decoder.config.query_pre_attn_scalar or architecture.head_dim,
        "final_logit_softcapping": architecture.logit_softcap,
    }


def _gemma2(decoder: Decoder) -> dict[str, Any]:
    return {**_gemma(decoder), "attn_logit_softcapping": decoder.architecture.attention_softcap}


def _gemma3(decoder: Decoder) -> dict[str, Any]:
    layers = decoder.architecture.layers
    whole = [index for index, layer in enumerate(layers) if layer.rope != LOCAL_ROPE]
    pattern = whole[0] + 1 if whole else len(layers) + 1
    if whole != [index for index in range(len(layers)) if (index + 1) % pattern == 0]:
        raise CheckpointError(
            f"layer_types of {decoder.architecture.family} has full attention in layers {', '.join(map(str, whole))}: "
            "TensorRT-LLM's engines have it in each Nth layer; build it with --tensorrt-llm-version 1.3"
        )
    return {
        **_gemma(decoder),
        "_sliding_window_pattern": pattern,
        "rope_local_base_freq": decoder.rope_settings[LOCAL_ROPE].theta,
        "sliding_window": decoder.config.sliding_window,
    }


def _moe(architecture: Architecture) -> dict[str, Any]:
    moe = architecture.moe
    if moe is None:
        return {}
    if not all(layer.is_moe for layer in architecture.layers):
        raise CheckpointError(
            f"{architecture.family} with experts in some layers only is not TensorRT-LLM's; build it with "
            "--tensorrt-llm-version 1.3"
        )
    # ExpertScaleNormalizationMode: NONE, RENORMALIZE.
    mode = 1 if moe.normalize_top_k else 0
    return {"moe": {"num_experts": moe.num_experts, "top_k": moe.experts_per_token, "normalization_mode": mode}}


_LLAMA: Final = EngineFamily(architecture="LlamaForCausalLM", extras=_llama, exporter="llama")
ENGINE_FAMILIES: Final[Mapping[str, EngineFamily]] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": EngineFamily(architecture="MistralForCausalLM", extras=_llama, exporter="llama"),
    "MixtralForCausalLM": EngineFamily(architecture="MixtralForCausalLM", extras=_llama),
    "Qwen2ForCausalLM": EngineFamily(architecture="Qwen2ForCausalLM", extras=_qwen("qwen2"), exporter="qwen"),
    "Qwen3ForCausalLM": EngineFamily(architecture="Qwen3ForCausalLM", extras=_qwen("qwen3"), exporter="qwen"),
    "Qwen3MoeForCausalLM": EngineFamily(architecture="Qwen3MoeForCausalLM", extras=_qwen("qwen3_moe")),
    "Phi3ForCausalLM": EngineFamily(
        architecture="Phi3ForCausalLM", extras=_phi3, is_mlp_fused=True, has_pipeline=False
    ),
    "Gemma2ForCausalLM": EngineFamily(architecture="Gemma2ForCausalLM", extras=_gemma2),
    "Gemma3ForCausalLM": EngineFamily(architecture="Gemma3ForCausalLM", extras=_gemma3),
    "Gemma3ForConditionalGeneration": EngineFamily(architecture="Gemma3ForCausalLM", extras=_gemma3),
}

PYTORCH_FAMILIES: Final = frozenset(
    {
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Phi3ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
    }
)
MODEL_TYPES: Final[Mapping[str, str]] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Phi3ForCausalLM": "phi3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Gemma3ForConditionalGeneration": "gemma3",
}
"""Family of either flow -> Hugging Face's `model_type`, which a GGUF file does not say."""


def check_family(name: str, flow: Flow) -> None:
    """Refuse a family that `flow` does not have, by name.

    Raises:
        ConfigError: it has not.
    """
    known, other = set(ENGINE_FAMILIES), set(PYTORCH_FAMILIES)
    if flow is Flow.PYTORCH:
        known, other = other, known
    if name not in known:
        elsewhere = "engine" if flow is Flow.PYTORCH else "pytorch"
        remedy = (
            f"build with --tensorrt-llm-version 1.2 --tensorrt-llm-flow {elsewhere}"
            if name in other
            else "build it with --target torch"
        )
        raise ConfigError(
            f"target is 'tensorrt_llm': its {flow.value} flow has no {name}; known are {', '.join(sorted(known))}; {remedy}"
        )
