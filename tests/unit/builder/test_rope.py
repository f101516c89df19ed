"""Frequencies against transformers' own functions, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from trierarch.builder.errors import CheckpointError
from trierarch.builder.hf_config import HfConfig
from trierarch.builder.rope import frequencies, rope_settings

RULES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn, every option": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn, given factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "attention_factor": 1.25,
        "original_max_position_embeddings": 4096,
    },
}


@pytest.mark.parametrize("partial", [None, 0.5])
@pytest.mark.parametrize("rule", RULES)
def test_frequencies_are_the_references(rule: str, partial: float | None) -> None:
    parameters = {"rope_type": rule, "rope_theta": 500_000.0, **RULES[rule]}
    if partial:
        parameters["partial_rotary_factor"] = partial
    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=131_072, rope_parameters=dict(parameters)
    )
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    ours = frequencies(rope_settings(parsed(config), parameters, 10_000.0), 4096)
    assert torch.equal(ours.inv_freq, inv_freq)
    assert ours.attention_factor == attention_factor


@pytest.mark.parametrize(("max_seq_len", "chosen"), [(64, "short"), (65, "long")])
def test_longrope_takes_one_list_by_the_longest_sequence(max_seq_len: int, chosen: str) -> None:
    parameters = {
        "rope_type": "longrope",
        "short_factor": [1.0 + index / 10 for index in range(24)],
        "long_factor": [1.0 + index for index in range(24)],
    }
    config = Phi3Config(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=1024,
        original_max_position_embeddings=64,
        rope_parameters={**parameters, "partial_rotary_factor": 0.75},
    )
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=max_seq_len)
    raw = {**config.to_dict(), "partial_rotary_factor": 0.75}
    ours = frequencies(rope_settings(HfConfig.parse(raw), parameters, 10_000.0), max_seq_len)
    assert torch.equal(ours.inv_freq, inv_freq)
    assert ours.attention_factor == attention_factor
    expected = 1.0 / (torch.tensor(parameters[f"{chosen}_factor"]) * 10_000.0 ** (torch.arange(0, 48, 2).float() / 48))
    assert torch.equal(ours.inv_freq, expected)


def test_older_spellings_mean_the_same() -> None:
    config = HfConfig.parse(parsed(LlamaConfig()).model_dump())
    old = frequencies(rope_settings(config, {"type": "linear", "factor": 2.0}, 10_000.0), 1)
    new = frequencies(rope_settings(config, {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}, 1.0), 1)
    assert torch.equal(old.inv_freq, new.inv_freq)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "spiral"}, r"rope scaling 'spiral' is unknown; known are default, dynamic, linear"),
        ({"rope_type": "linear"}, r"'linear' lacks factor; download"),
        ({"rope_type": "linear", "factor": "big"}, r"rope parameters: factor is 'big': Input should be a valid number"),
        ({"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}, r"short_factor must list 64 numbers"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": -1.0}, r"'yarn' has numbers that cannot be computed with"),
        ({"rope_type": "default", "partial_rotary_factor": 0.001}, r"rotary dimension is 0"),
    ],
)
def test_bad_rules_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        frequencies(rope_settings(parsed(LlamaConfig()), parameters, 10_000.0), 1024)


def test_gemma3_text_config_survives_both_spellings() -> None:
    """transformers 4 wrote `rope_local_base_freq`, 5 nests the settings by layer kind."""
    from trierarch.builder.decoder import read_decoder

    new = Gemma3TextConfig(num_hidden_layers=6).to_dict() | {"architectures": ["Gemma3ForCausalLM"]}
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "layer_types")}
    old |= {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6}
    one, other = read_decoder(new, None), read_decoder(old, None)
    assert one.architecture == other.architecture
    assert all(torch.equal(a.inv_freq, b.inv_freq) for a, b in zip(one.frequencies, other.frequencies, strict=True))
    assert not torch.equal(one.frequencies[0].inv_freq, one.frequencies[1].inv_freq)


def parsed(config: Any) -> HfConfig:
    return HfConfig.parse(config.to_dict())
