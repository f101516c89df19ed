"""`config.json` of a TensorRT-LLM checkpoint, which its PretrainedConfig and a class of the family's own read.

Source: tensorrt_llm/models/modeling_utils.py and models/{llama,qwen,phi3,gemma}/config.py of TensorRT-LLM 1.0 to 1.2.
"""

from __future__ import annotations

from typing import Any, Final

from trierarch.builder.decoder import Decoder
from trierarch.builder.errors import CheckpointError
from trierarch.builder.manifest import Activation, DType
from trierarch.builder.mapping import Mapping
from trierarch.builder.rope import RopeSettings
from trierarch.builder.tensorrt_llm.families import EngineFamily

_PYTORCH: Final = "build it with --tensorrt-llm-version 1.3"
_PLAIN: Final = ("default", "dynamic", "longrope")
"""Scaling rules that say nothing in `rotary_scaling`: dynamic NTK changes nothing within the window, and LongRoPE has keys of
its own."""
_SCALING_KEYS: Final = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings"),
}


def pretrained_config(
    decoder: Decoder, family: EngineFamily, dtype: DType, mapping: Mapping, quantization: dict[str, Any]
) -> dict[str, Any]:
    """The whole of it; `quantization` is a QuantConfig.

    Raises:
        CheckpointError: the model computes something that TensorRT-LLM's engines do not.
    """
    architecture = decoder.architecture
    rope = decoder.rope_settings[0]
    if rope.rotary_dim != architecture.head_dim and not family.is_mlp_fused:
        raise CheckpointError(
            f"{architecture.family} rotates {rope.rotary_dim} of {architecture.head_dim} elements of a head, which "
            f"TensorRT-LLM's engines of it do not; {_PYTORCH}"
        )
    is_split = mapping.tensor_parallel_size > 1
    places: dict[str, Any] = {
        "world_size": mapping.world_size,
        "tp_size": mapping.tensor_parallel_size,
        "pp_size": mapping.pipeline_parallel_size,
    }
    if architecture.moe is not None:
        places |= {"moe_tp_size": mapping.tensor_parallel_size, "moe_ep_size": 1}
    return {
        "architecture": family.architecture,
        "dtype": dtype.value,
        "logits_dtype": "float32",
        "vocab_size": architecture.vocab_size,
        "max_position_embeddings": architecture.max_position_embeddings,
        "hidden_size": architecture.hidden_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_size": architecture.head_dim,
        "intermediate_size": architecture.intermediate_size,
        "hidden_act": _activation(decoder, family),
        "norm_epsilon": architecture.norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": rope.theta,
        "rotary_scaling": _scaling(decoder, rope),
        "use_parallel_embedding": is_split,
        "embedding_sharding_dim": 0,
        "mapping": places,
        "quantization": quantization,
        **family.extras(decoder),
    }


def _activation(decoder: Decoder, family: EngineFamily) -> str:
    if decoder.architecture.activation is Activation.GELU_TANH:
        return "gelu_pytorch_tanh"
    # A gated MLP names what its gate goes through; experts and a fused MLP name the whole.
    return "swiglu" if family.is_mlp_fused or decoder.architecture.moe is not None else "silu"


def _scaling(decoder: Decoder, rope: RopeSettings) -> dict[str, Any] | None:
    if rope.kind in _PLAIN:
        return None
    name = decoder.architecture.family
    if len(decoder.rope_settings) > 1:
        # One `rotary_scaling` would hold for both, and the sliding layers' is not scaled.
        raise CheckpointError(
            f"{name}: rope scaling {rope.kind!r} of the full layers alone is not TensorRT-LLM's engines'; {_PYTORCH}"
        )
    if rope.kind not in _SCALING_KEYS:
        raise CheckpointError(f"{name}: rope scaling {rope.kind!r} is not TensorRT-LLM's engines'; {_PYTORCH}")
    if rope.kind == "yarn" and (rope.parameters.attention_factor is not None or not rope.parameters.truncate):
        raise CheckpointError(
            f"{name}: yarn with an attention_factor or truncate of its own is not TensorRT-LLM's engines'; {_PYTORCH}"
        )
    return {"rope_type": rope.kind, **{key: _number(rope, key) for key in _SCALING_KEYS[rope.kind]}, **_mscale(rope)}


def _mscale(rope: RopeSettings) -> dict[str, float]:
    """What TensorRT-LLM and transformers take for granted is the same, where neither is said."""
    given = {"mscale": rope.parameters.mscale, "mscale_all_dim": rope.parameters.mscale_all_dim}
    return {key: value for key, value in given.items() if value is not None} if rope.kind == "yarn" else {}


def _number(rope: RopeSettings, key: str) -> float:
    if key == "original_max_position_embeddings":
        return rope.original_max_position_embeddings
    if rope.kind == "yarn":
        defaults = {
            "factor": rope.max_position_embeddings / rope.original_max_position_embeddings,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        }
        value: float | None = getattr(rope.parameters, key)
        return defaults[key] if value is None else value
    return rope.required(key)
