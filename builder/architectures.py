"""The table of architectures: how each Hugging Face family's configuration becomes an `Architecture`.

A family is data: which tensors its weights come from, what its configuration means where it is silent, and which
layers slide or leave positions out. To add one, add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from trierarch.builder.errors import CheckpointError
from trierarch.builder.hf_config import HfConfig

Sources = Mapping[str, tuple[str, ...]]
"""Engine weight of a layer -> the checkpoint's tensors whose rows it stacks; {e} runs over experts."""

LLAMA: Final[Sources] = {
    "attn_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "o": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
    "router": ("mlp.gate",),
    "experts.gate_up": ("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"),
    "experts.down": ("mlp.experts.{e}.down_proj",),
}
PHI3: Final[Sources] = {**LLAMA, "qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)}
GEMMA: Final[Sources] = {
    **LLAMA,
    "post_attn_norm": ("post_attention_layernorm",),
    "mlp_norm": ("pre_feedforward_layernorm",),
    "post_mlp_norm": ("post_feedforward_layernorm",),
}
MIXTRAL: Final[Sources] = {
    **LLAMA,
    "router": ("block_sparse_moe.gate",),
    "experts.gate_up": ("block_sparse_moe.experts.{e}.w1", "block_sparse_moe.experts.{e}.w3"),
    "experts.down": ("block_sparse_moe.experts.{e}.w2",),
}

IGNORABLE: Final = (r"(.*\.)?rotary_emb\.inv_freq", r".*\.self_attn\.(masked_)?bias")
"""Tensors that old checkpoints carry and no decoder reads: they follow from the configuration."""


def _none(config: HfConfig, layer: int) -> bool:
    return False


def _every(config: HfConfig, layer: int) -> bool:
    return True


def _upper(config: HfConfig, layer: int) -> bool:
    return layer >= config.max_window_layers


def _nope(config: HfConfig, layer: int) -> bool:
    return not uses_rope(config, layer)


def _alternate(config: HfConfig, layer: int) -> bool:
    return (layer + 1) % 2 != 0


def _all_but_each_nth(config: HfConfig, layer: int) -> bool:
    return (layer + 1) % config.sliding_window_pattern != 0


def uses_rope(config: HfConfig, layer: int) -> bool:
    """SmolLM3's rule: `no_rope_layers` holds 1 for a layer that rotates; unsaid, each nth layer does not."""
    if config.no_rope_layers is None:
        return (layer + 1) % config.no_rope_layer_interval != 0
    return layer < len(config.no_rope_layers) and bool(config.no_rope_layers[layer])


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row of the table. Unset fields are Llama's."""

    sources: Sources = field(default_factory=lambda: LLAMA)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the configuration means where it is silent."""
    qkv_bias: bool | None = None
    """None follows the configuration's `attention_bias`."""
    o_bias: bool | None = None
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    """Added to norm weights: 1 where the family multiplies by 1 + w."""
    slides: Callable[[HfConfig, int], bool] = _none
    """Layers that have the sliding window, where the configuration has no `layer_types`."""
    obeys_layer_types: bool = False
    window_switch: bool = False
    """Whether the window counts only with `use_sliding_window`."""
    has_nope_layers: bool = False
    local_rope: bool = False
    """Whether sliding layers have rotary embeddings of their own (Gemma 3)."""
    scales_embeddings: bool = False
    moe: Callable[[HfConfig, int], bool] = _none
    moe_normalizes: bool | None = None
    """None follows `norm_topk_prob`."""
    renames: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement) that bring the checkpoint's tensor names into the common form."""
    ignorable: tuple[str, ...] = ()
    mtp: str | None = None
    """What the names of a multi-token prediction layer's tensors begin with, where checkpoints may have one."""


def _qwen3_moe(config: HfConfig, layer: int) -> bool:
    return layer not in (config.mlp_only_layers or ()) and (layer + 1) % config.decoder_sparse_step == 0


_LLAMA_FAMILY: Final = Family()
_QWEN_DEFAULTS: Final = {"sliding_window": 4096}
_QWEN2: Final = Family(
    defaults=_QWEN_DEFAULTS,
    qkv_bias=True,
    o_bias=False,
    slides=_upper,
    obeys_layer_types=True,
    window_switch=True,
)
_GEMMA_DEFAULTS: Final = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "head_dim": 256,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
_GEMMA3: Final = Family(
    sources=GEMMA,
    # The published multimodal checkpoints leave most of `text_config` to its class's defaults.
    defaults={
        **_GEMMA_DEFAULTS,
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
    },
    qk_norm=True,
    post_norms=True,
    norm_offset=1.0,
    slides=_all_but_each_nth,
    obeys_layer_types=True,
    local_rope=True,
    scales_embeddings=True,
    renames=(
        (r"language_model\.model\.", "model."),
        (r"language_model\.lm_head\.", "lm_head."),
        (r"model\.language_model\.", "model."),
    ),
    ignorable=(r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*"),
)

FAMILIES: Final[Mapping[str, Family]] = {
    "LlamaForCausalLM": _LLAMA_FAMILY,
    "MistralForCausalLM": Family(defaults={"sliding_window": 4096}, qkv_bias=False, o_bias=False, slides=_every),
    "SmolLM3ForCausalLM": Family(
        defaults={"tie_word_embeddings": True, "rope_theta": 2_000_000.0},
        slides=_nope,
        obeys_layer_types=True,
        window_switch=True,
        has_nope_layers=True,
    ),
    "Qwen2ForCausalLM": _QWEN2,
    "MiMoForCausalLM": replace(_QWEN2, ignorable=(r"model\.mtp_layers\..*",), mtp="model.mtp_layers.0."),
    "Qwen3ForCausalLM": Family(
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
        qk_norm=True,
        slides=_upper,
        obeys_layer_types=True,
        window_switch=True,
    ),
    "Phi3ForCausalLM": Family(
        sources=PHI3,
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        qkv_bias=False,
        o_bias=False,
        slides=_every,
    ),
    "Gemma2ForCausalLM": Family(
        sources=GEMMA,
        defaults={**_GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        post_norms=True,
        norm_offset=1.0,
        slides=_alternate,
        obeys_layer_types=True,
        scales_embeddings=True,
    ),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "MixtralForCausalLM": Family(
        sources=MIXTRAL,
        defaults={"rms_norm_eps": 1e-5, "num_local_experts": 8, "rope_theta": 1_000_000.0},
        qkv_bias=False,
        o_bias=False,
        slides=_every,
        moe=_every,
        moe_normalizes=True,
    ),
    "Qwen3MoeForCausalLM": Family(
        defaults={**_QWEN_DEFAULTS, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        qk_norm=True,
        slides=_every,
        window_switch=True,
        moe=_qwen3_moe,
    ),
}


def find_family(raw: Mapping[str, Any]) -> tuple[str, Family]:
    """The row that a `config.json` names in `architectures`.

    Raises:
        CheckpointError: it names none, or one that is not in the table.
    """
    named = raw.get("architectures")
    name = named[0] if isinstance(named, (list, tuple)) and named else None
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or family is None:
        known = ", ".join(FAMILIES)
        raise CheckpointError(
            f"config.json: architectures is {named!r}; this builder knows {known} (a checkpoint's own code is never run)"
        )
    return name, family
