"""GGUF files made from small Hugging Face checkpoints, with the `gguf` package's own table of tensor names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from support.checkpoints import BOS, CHAT_TEMPLATE, EOS, PAD, small_tokenizer
from trierarch.builder.hf_config import HfConfig
from trierarch.builder.rope import frequencies, rope_settings

ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
_INTERLEAVED = ("llama", "mixtral", "smollm3")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def write_gguf(
    checkpoint: Path,
    path: Path,
    tensor_type: str = "F32",
    tokenizer: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, NDArray[np.float32]] | None = None,
) -> Path:
    """Convert the Hugging Face directory `checkpoint`; matrices whose rows divide by the block get `tensor_type`.

    `tokenizer` replaces the keys of the small byte-level tokenizer (see `byte_level_keys`).
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(checkpoint / "model.safetensors")
    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[kind]])
    _add_config(writer, config)
    for key, value in (byte_level_keys(config["vocab_size"]) if tokenizer is None else tokenizer).items():
        add_value(writer, key, value)
    quant = gguf.GGMLQuantizationType[tensor_type]
    block_size = gguf.GGML_QUANT_SIZES[quant][0]
    for name, array in {**_converted(config, tensors), **_rope_factors(config), **(extra_tensors or {})}.items():
        if array.ndim > 1 and array.shape[-1] % block_size == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, quant), raw_dtype=quant)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Write one metadata value with the type that converters give it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def byte_level_keys(vocab_size: int) -> dict[str, Any]:
    """The small tokenizer of `support.checkpoints` as `tokenizer.*` metadata."""
    model = json.loads(small_tokenizer().to_str())["model"]
    by_id = {index: token for token, index in model["vocab"].items()}
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)]
    types = [
        CONTROL if index in (BOS, EOS, PAD) else NORMAL if index in by_id else UNUSED for index in range(vocab_size)
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.padding_token_id": PAD,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def sentencepiece_keys(vocab_size: int, pieces: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """SentencePiece metadata: <unk>, <s>, </s>, 256 bytes, then `pieces` (text -> score)."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces)
    scores = [0.0] * 259 + list(pieces.values())
    padding = vocab_size - len(tokens)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{index}]" for index in range(padding)],
        "tokenizer.ggml.token_type": types + [UNUSED] * padding,
        "tokenizer.ggml.scores": scores + [-1e4] * padding,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }


def _add_config(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    head_dim = _head_dim(config)
    rope = config["rope_parameters"]
    main = rope.get("full_attention", rope)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(main["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * main.get("partial_rotary_factor", 1.0)))
    if main["rope_type"] in ("yarn", "linear"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(main["rope_type"]))
        writer.add_rope_scaling_factor(main["factor"])
    if "original_max_position_embeddings" in main:
        writer.add_rope_scaling_orig_ctx_len(main["original_max_position_embeddings"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if num_experts := config.get("num_local_experts") or config.get("num_experts"):
        writer.add_expert_count(num_experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config.get("moe_intermediate_size", config["intermediate_size"]))


def _converted(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    kind = config["model_type"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[kind], config["num_hidden_layers"])
    experts: dict[str, list[NDArray[np.float32]]] = {}
    converted = {}
    for name in sorted(tensors, key=lambda one: [int(part) if part.isdigit() else part for part in one.split(".")]):
        array = tensors[name]
        if kind in _INTERLEAVED and ".q_proj" in name:
            array = _interleave(array, config["num_attention_heads"])
        if kind in _INTERLEAVED and ".k_proj" in name:
            array = _interleave(array, config["num_key_value_heads"])
        if kind.startswith("gemma") and "norm" in name:
            array = array + 1
        if ".experts." in name:
            stem, _, rest = name.partition(".experts.")
            experts.setdefault(f"{stem}.experts.{rest.partition('.')[2]}", []).append(array)
            continue
        converted[_gguf_name(names, name)] = array
    return converted | {_gguf_name(names, name): np.stack(arrays) for name, arrays in experts.items()}


def _gguf_name(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def _interleave(array: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    halves = array.reshape(num_heads, 2, -1, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _rope_factors(config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    rope = config["rope_parameters"]
    if rope.get("rope_type") == "longrope":
        return {
            "rope_factors_long.weight": np.array(rope["long_factor"], dtype=np.float32),
            "rope_factors_short.weight": np.array(rope["short_factor"], dtype=np.float32),
        }
    if rope.get("rope_type") == "llama3":
        parsed = HfConfig.parse(config)
        plain = frequencies(rope_settings(parsed, None, rope["rope_theta"]), 1).inv_freq
        scaled = frequencies(rope_settings(parsed, rope, rope["rope_theta"]), 1).inv_freq
        return {"rope_freqs.weight": (plain / scaled).numpy()}
    return {}


def _head_dim(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
