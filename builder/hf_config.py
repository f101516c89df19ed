"""HfConfig: the part of a Hugging Face configuration that decides what a decoder computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trierarch.builder.errors import CheckpointError
from trierarch.builder.manifest import PositiveInt
from trierarch.builder.validation import validated


class HfConfig(BaseModel):
    """A decoder's `config.json`, checked. Keys that do not change the computation are ignored.

    A default here holds for every family; where families differ, the table of `architectures` says so.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt = Field(le=1024)
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    max_position_embeddings: PositiveInt
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    hidden_activation: str | None = None
    attention_bias: bool = False
    mlp_bias: bool = False

    rope_theta: float | None = Field(default=None, gt=0)
    rope_local_base_freq: float = Field(default=10_000.0, gt=0)
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = Field(default=None, gt=0, le=1)
    original_max_position_embeddings: PositiveInt | None = None
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: PositiveInt = 4

    layer_types: tuple[str, ...] | None = None
    sliding_window: int | None = Field(default=None, ge=0)
    sliding_window_pattern: PositiveInt = 6
    use_sliding_window: bool | None = None
    max_window_layers: int = 28
    use_bidirectional_attention: bool | None = None

    query_pre_attn_scalar: float | None = Field(default=None, gt=0, le=1e6)
    attn_logit_softcapping: float | None = Field(default=None, gt=0)
    final_logit_softcapping: float | None = Field(default=None, gt=0)

    num_experts: PositiveInt | None = Field(default=None, le=4096)
    num_local_experts: PositiveInt | None = Field(default=None, le=4096)
    num_experts_per_tok: PositiveInt = 2
    moe_intermediate_size: PositiveInt | None = None
    norm_topk_prob: bool = False
    mlp_only_layers: tuple[int, ...] | None = None
    decoder_sparse_step: PositiveInt = 1

    @property
    def kv_heads(self) -> int:
        """Key and value heads; as many as query heads unless said."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def size_of_head(self) -> int:
        """Elements of one head; the hidden size split among the heads unless said."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def parse(cls, raw: Mapping[str, Any], where: str = "config.json") -> HfConfig:
        """Check a configuration; `where` is what errors call it.

        Raises:
            CheckpointError: a value is missing or out of range.
        """
        config = validated(cls, raw, f"{where}: ")
        if config.num_attention_heads % config.kv_heads:
            raise CheckpointError(
                f"{where}: num_attention_heads is {config.num_attention_heads}: must be a multiple of "
                f"num_key_value_heads ({config.kv_heads})"
            )
        return config
