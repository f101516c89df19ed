"""RandomCheckpoint: a checkpoint of random numbers of any size, made as it is read; nothing is downloaded or kept."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch

from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.codes import Codes, CodeType

LLAMA_3_1_8B: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 128_000,
        "eos_token_id": 128_009,
        "torch_dtype": "bfloat16",
    }
)
"""Llama-3.1-8B's shape, without the scaling of its rotary frequencies, which costs nothing to compute."""
TINY: Final[Mapping[str, Any]] = MappingProxyType(
    {
        **LLAMA_3_1_8B,
        "vocab_size": 40_000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
)
"""Enough to see every path run."""
_SPREAD: Final = 0.02
"""Standard deviation of matrices: what models are initialised with, so that activations stay finite."""


class RandomCheckpoint:
    """Of a Llama. Implements Checkpoint; it has no tokenizer."""

    quantization: Final = None
    code_types: Final[Mapping[str, CodeType]] = MappingProxyType({})
    needless: Final[frozenset[str]] = frozenset()
    has_folded_norms: Final = False

    def __init__(self, config: Mapping[str, Any], seed: int, device: torch.device) -> None:
        """Numbers are drawn on `device`."""
        self.name = "random"
        self.config = config
        self.shapes: Mapping[str, tuple[int, ...]] = _shapes(config)
        self._seed = seed
        self._device = device

    def load(self, name: str) -> torch.Tensor:
        """The same numbers whenever it is asked: normal ones, of a norm ones."""
        shape = self.shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        generator = torch.Generator(self._device).manual_seed(self._seed ^ zlib.crc32(name.encode()))
        numbers = torch.randn(shape, dtype=torch.bfloat16, device=self._device, generator=generator)
        return numbers.mul_(_SPREAD).cpu()

    def load_codes(self, name: str) -> Codes:
        """Never asked for: `code_types` is empty."""
        raise AssertionError(f"{name} is not stored as codes")

    def tokenizer(self, vocab_size: int) -> TokenizerFiles:
        """Never asked for: benchmarks send token ids."""
        raise AssertionError("random numbers have no tokenizer")


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    table = (config["vocab_size"], hidden)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (hidden,),
        "lm_head.weight": table,
    }
    of_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    return shapes
