"""Decoder: a checkpoint's configuration, read through its family's row, as the engine's `Architecture`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trierarch.builder.architectures import Family, find_family, uses_rope
from trierarch.builder.config import DEFAULT_MAX_SEQ_LEN
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.hf_config import HfConfig
from trierarch.builder.manifest import Activation, Architecture, Layer, Moe, Rope
from trierarch.builder.rope import Frequencies, RopeSettings, frequencies, rope_settings

_DEFAULT_THETA: Final = 10_000.0
_GLOBAL_ROPE: Final = 0
_LOCAL_ROPE: Final = 1
_ACTIVATIONS: Final = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


@dataclass(frozen=True, slots=True)
class Decoder:
    """What is computed and where its weights come from."""

    architecture: Architecture
    family: Family
    frequencies: tuple[Frequencies, ...]
    """One for each of the architecture's `ropes`."""
    rope_settings: tuple[RopeSettings, ...]
    """What those were resolved from."""
    config: HfConfig
    max_seq_len: int


def read_decoder(raw: Mapping[str, Any], max_seq_len: int | None) -> Decoder:
    """Interpret a `config.json` for sequences of at most `max_seq_len` tokens (None: as BuildConfig says).

    Raises:
        CheckpointError: an architecture, activation or layer kind that is not in the table, or a
            configuration that contradicts itself.
        ConfigError: `max_seq_len` is beyond the checkpoint's window.
    """
    return decoder_of(*find_family(raw), raw, max_seq_len)


def decoder_of(name: str, family: Family, raw: Mapping[str, Any], max_seq_len: int | None) -> Decoder:
    """The same, read through the row `family` whatever the configuration names; `name` is what the engine calls it.

    Raises:
        CheckpointError, ConfigError: as `read_decoder`.
    """
    text = raw.get("text_config")
    flat = {**raw, **text} if isinstance(text, Mapping) else dict(raw)
    config = HfConfig.parse({**family.defaults, **flat})
    if config.use_bidirectional_attention:
        raise CheckpointError("config.json: use_bidirectional_attention is true: only causal decoders are served")
    window = config.max_position_embeddings
    length = min(window, DEFAULT_MAX_SEQ_LEN) if max_seq_len is None else max_seq_len
    if length > window:
        raise ConfigError(f"max_seq_len is {length}: the checkpoint's window is {window}; ask for at most that")
    settings = _rope_settings(family, config)
    resolved = tuple(frequencies(one, length) for one in settings)
    return Decoder(
        architecture=_architecture(name, family, config, resolved, length),
        family=family,
        frequencies=resolved,
        rope_settings=settings,
        config=config,
        max_seq_len=length,
    )


def _rope_settings(family: Family, config: HfConfig) -> tuple[RopeSettings, ...]:
    parameters = config.rope_parameters or config.rope_scaling or {}
    is_nested = any(isinstance(value, Mapping) for value in parameters.values())
    global_parameters = parameters.get("full_attention") if is_nested else parameters
    settings = [rope_settings(config, global_parameters, config.rope_theta or _DEFAULT_THETA)]
    if family.local_rope:
        local_parameters = parameters.get("sliding_attention") if is_nested else None
        settings.append(rope_settings(config, local_parameters, config.rope_local_base_freq))
    return tuple(settings)


def _architecture(
    name: str, family: Family, config: HfConfig, ropes: tuple[Frequencies, ...], max_seq_len: int
) -> Architecture:
    head_dim = config.size_of_head
    moe = _moe(family, config)
    return Architecture(
        family=name,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.kv_heads,
        head_dim=head_dim,
        intermediate_size=config.intermediate_size,
        layers=tuple(_layer(family, config, index, max_seq_len) for index in range(config.num_hidden_layers)),
        ropes=tuple(Rope(rotary_dim=2 * one.inv_freq.numel(), attention_factor=one.attention_factor) for one in ropes),
        activation=_activation(config),
        norm_eps=config.rms_norm_eps,
        attention_scale=(config.query_pre_attn_scalar or head_dim) ** -0.5,
        attention_softcap=config.attn_logit_softcapping,
        logit_softcap=config.final_logit_softcapping,
        embedding_scale=config.hidden_size**0.5 if family.scales_embeddings else 1.0,
        qkv_bias=config.attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=config.attention_bias if family.o_bias is None else family.o_bias,
        mlp_bias=config.mlp_bias,
        qk_norm=family.qk_norm,
        post_norms=family.post_norms,
        tie_embeddings=config.tie_word_embeddings,
        moe=moe,
        max_position_embeddings=config.max_position_embeddings,
    )


def _layer(family: Family, config: HfConfig, index: int, max_seq_len: int) -> Layer:
    is_sliding = _is_sliding(family, config, index)
    window = config.sliding_window if is_sliding else None
    if family.window_switch and not config.use_sliding_window:
        window = None
    if window is not None and (window == 0 or window >= max_seq_len):
        window = None  # it would never hide a token
    rope: int | None = _LOCAL_ROPE if family.local_rope and is_sliding else _GLOBAL_ROPE
    if family.has_nope_layers and not uses_rope(config, index):
        rope = None
    return Layer(window=window, rope=rope, is_moe=family.moe(config, index))


def _is_sliding(family: Family, config: HfConfig, index: int) -> bool:
    if not family.obeys_layer_types or config.layer_types is None:
        return family.slides(config, index)
    if len(config.layer_types) < config.num_hidden_layers:
        raise CheckpointError(
            f"config.json: layer_types has {len(config.layer_types)} entries for {config.num_hidden_layers} layers"
        )
    kind = config.layer_types[index]
    if kind not in ("full_attention", "sliding_attention"):
        raise CheckpointError(f"config.json: layer_types[{index}] is {kind!r}: full or sliding_attention is known")
    return kind == "sliding_attention"


def _moe(family: Family, config: HfConfig) -> Moe | None:
    if not any(family.moe(config, index) for index in range(config.num_hidden_layers)):
        return None
    num_experts = config.num_local_experts or config.num_experts
    if num_experts is None or config.num_experts_per_tok > num_experts:
        raise CheckpointError(
            f"config.json: num_experts_per_tok is {config.num_experts_per_tok} of {num_experts} experts"
        )
    return Moe(
        num_experts=num_experts,
        experts_per_token=config.num_experts_per_tok,
        intermediate_size=config.moe_intermediate_size or config.intermediate_size,
        normalize_top_k=config.norm_topk_prob if family.moe_normalizes is None else family.moe_normalizes,
    )


def _activation(config: HfConfig) -> Activation:
    name = config.hidden_activation or config.hidden_act
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(_ACTIVATIONS)
        raise CheckpointError(f"config.json: hidden_act is {name!r}: known are {known}") from None
