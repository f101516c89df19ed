"""The table of architectures against what transformers makes of the same configuration, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers import Gemma2Config, Gemma3TextConfig, Qwen2Config, SmolLM3Config

from trierarch.builder.decoder import read_decoder
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.manifest import Architecture

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def read(config: Any, name: str, max_seq_len: int | None = None) -> Architecture:
    return read_decoder(config.to_dict() | {"architectures": [name]}, max_seq_len).architecture


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=9, num_hidden_layers=12), "Qwen2"),
        (Gemma2Config(num_hidden_layers=5), "Gemma2"),
        (Gemma3TextConfig(num_hidden_layers=13, sliding_window=512), "Gemma3"),
        (
            SmolLM3Config(num_hidden_layers=8, use_sliding_window=True, sliding_window=128, no_rope_layer_interval=3),
            "SmolLM3",
        ),
    ],
)
@pytest.mark.parametrize("says_layer_types", [True, False])
def test_windows_are_where_the_reference_has_them(config: Any, name: str, says_layer_types: bool) -> None:
    raw = config.to_dict() | {"architectures": [f"{name}ForCausalLM"]}
    if not says_layer_types:
        raw.pop("layer_types")
    layers = read_decoder(raw, None).architecture.layers
    expected = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    assert [layer.window for layer in layers] == expected
    assert None in expected
    assert config.sliding_window in expected


def test_a_window_that_hides_nothing_is_none() -> None:
    assert read(Gemma2Config(sliding_window=64), "Gemma2ForCausalLM", max_seq_len=64).layers[0].window is None
    assert read(Gemma2Config(sliding_window=64), "Gemma2ForCausalLM", max_seq_len=65).layers[0].window == 64


def test_qwen2_slides_only_when_switched_on() -> None:
    config = Qwen2Config(use_sliding_window=False, sliding_window=64, max_window_layers=0)
    assert all(layer.window is None for layer in read(config, "Qwen2ForCausalLM").layers)


def test_smollm3_leaves_positions_out_as_told() -> None:
    config = SmolLM3Config(num_hidden_layers=4, no_rope_layers=[1, 0, 0, 1])
    assert [layer.rope for layer in read(config, "SmolLM3ForCausalLM").layers] == [0, None, None, 0]


@pytest.mark.parametrize("name", ["Gemma2", "Gemma3Text", "SmolLM3", "Llama", "Qwen2", "Qwen3", "Phi3", "Mixtral"])
def test_silence_means_what_the_reference_means(name: str) -> None:
    """A configuration may leave a value to its class: tying, eps, head size, theta and softcaps come out the same."""
    config = getattr(transformers, f"{name}Config")()
    said = config.to_dict()
    dimensions = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept = (*dimensions, "num_key_value_heads", "max_position_embeddings")
    family = f"{name.removesuffix('Text')}ForCausalLM"
    silent = {key: said[key] for key in kept} | {"architectures": [family]}
    one, other = read_decoder(silent, None).architecture, read(config, family)
    assert one == other


def test_published_gemma3_multimodal_configs_leave_the_text_to_defaults() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34, "sliding_window": 1024}
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "vision_config": {}}
    architecture = read_decoder(raw, None).architecture
    assert (architecture.num_heads, architecture.num_kv_heads, architecture.head_dim) == (8, 4, 256)
    assert architecture.vocab_size == 262_208
    assert architecture.tie_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, r"architectures is \['MambaForCausalLM'\]; this builder knows Llama"),
        ({"architectures": None}, r"architectures is None"),
        ({"architectures": [["LlamaForCausalLM"]]}, r"architectures is \[\["),
        ({"hidden_act": "relu"}, r"hidden_act is 'relu': known are silu"),
        ({"hidden_size": "wide"}, r"hidden_size is 'wide': Input should be a valid integer"),
        ({"hidden_size": -1}, r"hidden_size is -1: Input should be greater than 0"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers is 1000000000: .* 1024"),
        ({"num_key_value_heads": 3}, r"num_attention_heads is 4: must be a multiple of num_key_value_heads \(3\)"),
        ({"rms_norm_eps": 0}, r"rms_norm_eps is 0"),
        ({"architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention"]}, r"layer_types has 1 entries"),
        ({"architectures": ["Gemma2ForCausalLM"], "layer_types": ["chunked"] * 2}, r"layer_types\[0\] is 'chunked'"),
        ({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True}, r"only causal decoders"),
        ({"architectures": ["MixtralForCausalLM"], "num_experts_per_tok": 9}, r"num_experts_per_tok is 9 of 8 experts"),
    ],
)
def test_what_is_not_known_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_decoder({**LLAMA, **change}, None)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"config.json: vocab_size: Field required"):
        read_decoder({key: value for key, value in LLAMA.items() if key != "vocab_size"}, None)


def test_the_window_bounds_max_seq_len() -> None:
    assert read_decoder(LLAMA, None).max_seq_len == 512
    assert read_decoder({**LLAMA, "max_position_embeddings": 131_072}, None).max_seq_len == 8192
    with pytest.raises(ConfigError, match=r"max_seq_len is 513: the checkpoint's window is 512"):
        read_decoder(LLAMA, 513)
