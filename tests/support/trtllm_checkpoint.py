"""A TensorRT-LLM checkpoint run by plain torch: its tensors and its config.json alone, all GPUs' parts one after the other.

Written from the format's description ("unified checkpoint", TensorRT-LLM 1.0 to 1.2) and what its layers compute; it shares no
code with the builder. Each matrix of a rank is multiplied by itself, and what the ranks would sum is summed here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from support.trtllm_linear import linear

Tensors = Mapping[str, torch.Tensor]


def read_ranks(checkpoint: Path) -> tuple[dict[str, Any], list[Tensors]]:
    """config.json, and each rank's tensors."""
    config = json.loads((checkpoint / "config.json").read_text())
    size = config["mapping"]["world_size"]
    assert size == config["mapping"]["tp_size"] * config["mapping"]["pp_size"]
    names = sorted(path.name for path in checkpoint.iterdir())
    assert names == sorted(["config.json", *(f"rank{index}.safetensors" for index in range(size))])
    return config, [load_file(str(checkpoint / f"rank{index}.safetensors")) for index in range(size)]


@torch.inference_mode()
def checkpoint_logits(checkpoint: Path, tokens: Sequence[int], windows: Sequence[int] | None = None) -> torch.Tensor:
    """(len(tokens), vocab) float32; `windows` is max_attention_window, repeated over the layers."""
    config, ranks = read_ranks(checkpoint)
    model = _Model(config, windows or [len(tokens)], len(tokens))
    num_places = config["mapping"]["tp_size"]
    stages = [ranks[begin : begin + num_places] for begin in range(0, len(ranks), num_places)]
    hidden = model.embed(stages[0], torch.tensor(tokens))
    index = 0
    for stage in stages:
        count = 1 + max(int(name.split(".")[2]) for name in stage[0] if name.startswith("transformer.layers."))
        for local in range(count):
            hidden = model.layer(stage, f"transformer.layers.{local}.", index, hidden)
            index += 1
    assert index == config["num_hidden_layers"]
    return model.logits(stages[-1], hidden)


class _Model:
    def __init__(self, config: dict[str, Any], windows: Sequence[int], length: int) -> None:
        self._config, self._windows, self._length = config, windows, length
        self._is_gemma = config["architecture"].startswith("Gemma")

    def embed(self, ranks: Sequence[Tensors], tokens: torch.Tensor) -> torch.Tensor:
        tables = [rank["transformer.vocab_embedding.weight"].float() for rank in ranks]
        if self._config["use_parallel_embedding"]:
            assert self._config["embedding_sharding_dim"] == 0
            share = math.ceil(self._config["vocab_size"] / len(tables))
            hidden = torch.zeros(len(tokens), self._config["hidden_size"])
            for place, table in enumerate(tables):
                assert len(table) == share
                own = (tokens >= place * share) & (tokens < (place + 1) * share)
                hidden[own] += table[tokens[own] - place * share]
        else:
            hidden = tables[0][tokens]
        return hidden * self._config["hidden_size"] ** 0.5 if self._is_gemma else hidden

    def logits(self, ranks: Sequence[Tensors], hidden: torch.Tensor) -> torch.Tensor:
        normed = self._norm(ranks[0]["transformer.ln_f.weight"], hidden)
        every = torch.cat([linear(rank, "lm_head", normed) for rank in ranks], dim=1)
        every = every[:, : self._config["vocab_size"]]
        cap = self._config.get("final_logit_softcapping")
        return every if cap is None else cap * torch.tanh(every / cap)

    def layer(self, ranks: Sequence[Tensors], prefix: str, index: int, hidden: torch.Tensor) -> torch.Tensor:
        norms = {
            name.removeprefix(prefix).removesuffix(".weight"): tensor
            for name, tensor in ranks[0].items()
            if name.startswith(prefix) and name.endswith("layernorm.weight")
        }
        normed = self._norm(norms["input_layernorm"], hidden)
        attended = sum(self._attention(rank, f"{prefix}attention.", index, normed) for rank in ranks)
        attended = attended + ranks[0].get(f"{prefix}attention.dense.bias", torch.zeros(())).float()
        if "pre_feedforward_layernorm" in norms:
            hidden = hidden + self._norm(norms["post_layernorm"], attended)
            computed = self._mlp(ranks, f"{prefix}mlp.", self._norm(norms["pre_feedforward_layernorm"], hidden))
            return hidden + self._norm(norms["post_feedforward_layernorm"], computed)
        hidden = hidden + attended
        return hidden + self._mlp(ranks, f"{prefix}mlp.", self._norm(norms["post_layernorm"], hidden))

    def _norm(self, weight: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return hidden * torch.rsqrt(variance + self._config["norm_epsilon"]) * weight.float()

    def _attention(self, rank: Tensors, prefix: str, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """What one rank adds, before the bias."""
        config, size = self._config, self._config["head_size"]
        num_places = config["mapping"]["tp_size"]
        num_heads = config["num_attention_heads"] // num_places
        num_kv_heads = max(1, config["num_key_value_heads"] // num_places)
        heads = (
            linear(rank, f"{prefix}qkv", hidden).view(len(hidden), num_heads + 2 * num_kv_heads, size).transpose(0, 1)
        )
        queries, keys, values = heads.split([num_heads, num_kv_heads, num_kv_heads])
        if f"{prefix}q_layernorm.weight" in rank:
            queries = self._norm(rank[f"{prefix}q_layernorm.weight"], queries)
            keys = self._norm(rank[f"{prefix}k_layernorm.weight"], keys)
        queries, keys = self._rotated(index, queries), self._rotated(index, keys)
        keys, values = (part.repeat_interleave(num_heads // num_kv_heads, dim=0) for part in (keys, values))
        scores = queries @ keys.transpose(1, 2) * (config.get("query_pre_attn_scalar") or size) ** -0.5
        cap = config.get("attn_logit_softcapping")
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        places = torch.arange(len(hidden))
        distance = places[:, None] - places[None, :]
        window = self._windows[index % len(self._windows)]
        scores = scores.masked_fill((distance < 0) | (distance >= window), float("-inf"))
        attended = (scores.softmax(-1) @ values).transpose(0, 1).reshape(len(hidden), num_heads * size)
        return linear(rank, f"{prefix}dense", attended, has_bias=False)

    def _rotated(self, index: int, heads: torch.Tensor) -> torch.Tensor:
        """heads: (n, tokens, head_size)."""
        inv_freq, factor = self._frequencies(index)
        angles = torch.arange(heads.shape[1])[:, None].float() * inv_freq
        cos, sin = (part.repeat(1, 2) * factor for part in (angles.cos(), angles.sin()))
        dim = 2 * len(inv_freq)
        rotary, rest = heads[..., :dim], heads[..., dim:]
        half = torch.cat([-rotary[..., dim // 2 :], rotary[..., : dim // 2]], dim=-1)
        return torch.cat([rotary * cos + half * sin, rest], dim=-1)

    def _frequencies(self, index: int) -> tuple[torch.Tensor, float]:
        config = self._config
        base = config["rotary_base"]
        pattern = config.get("_sliding_window_pattern")
        if pattern is not None and (index + 1) % pattern:
            base = config["rope_local_base_freq"]
        dim = int(config["head_size"] * config.get("rotary_pct", 1.0))
        powers = base ** (torch.arange(0, dim, 2).float() / dim)
        if config["position_embedding_type"] == "long_rope":
            original, longest = config["original_max_position_embeddings"], config["max_position_embeddings"]
            kind = "long" if self._length > original else "short"
            factors = torch.tensor(config[f"longrope_scaling_{kind}_factors"])
            scale = longest / original
            return 1 / (factors * powers), 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original))
        assert config["position_embedding_type"] == "rope_gpt_neox"
        scaling = config["rotary_scaling"]
        return (1 / powers, 1.0) if scaling is None else _scaled(scaling, 1 / powers, base, dim)

    def _mlp(self, ranks: Sequence[Tensors], prefix: str, hidden: torch.Tensor) -> torch.Tensor:
        if f"{prefix}router.weight" in ranks[0]:
            return sum((self._experts(rank, prefix, hidden) for rank in ranks), torch.zeros(()))
        total = torch.zeros_like(hidden)
        for rank in ranks:
            if f"{prefix}gate.weight" in rank:
                inner = self._activated(linear(rank, f"{prefix}fc", hidden)) * linear(rank, f"{prefix}gate", hidden)
            else:
                inner = _swiglu(linear(rank, f"{prefix}fc", hidden))
            total = total + linear(rank, f"{prefix}proj", inner, has_bias=False)
        return total + ranks[0].get(f"{prefix}proj.bias", torch.zeros(())).float()

    def _activated(self, values: torch.Tensor) -> torch.Tensor:
        if self._config["hidden_act"] == "silu":
            return torch.nn.functional.silu(values)
        assert self._config["hidden_act"] == "gelu_pytorch_tanh"
        return torch.nn.functional.gelu(values, approximate="tanh")

    def _experts(self, rank: Tensors, prefix: str, hidden: torch.Tensor) -> torch.Tensor:
        moe = self._config["moe"]
        assert self._config["hidden_act"] == "swiglu"
        assert rank[f"{prefix}router.weight"].dtype == torch.float32
        scales = (hidden @ rank[f"{prefix}router.weight"].T).softmax(-1)
        chosen, experts = scales.topk(moe["top_k"], dim=-1)
        if moe["normalization_mode"] == 1:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        total = torch.zeros_like(hidden)
        for place in range(len(hidden)):
            for scale, expert in zip(chosen[place], experts[place], strict=True):
                inner = _swiglu(rank[f"{prefix}fc.weight"][expert].float() @ hidden[place])
                total[place] += scale * (rank[f"{prefix}proj.weight"][expert].float() @ inner)
        return total


def _swiglu(values: torch.Tensor) -> torch.Tensor:
    """Of a fused product: the second half gates the first."""
    first, gate = values.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * first


def _scaled(scaling: dict[str, Any], inv_freq: torch.Tensor, base: float, dim: int) -> tuple[torch.Tensor, float]:
    kind, factor = scaling["rope_type"], scaling["factor"]
    if kind == "linear":
        return inv_freq / factor, 1.0
    original = scaling["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = ((original * inv_freq / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        return inv_freq * (smooth + (1 - smooth) / factor), 1.0
    assert kind == "yarn"

    def turning(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(turning(scaling["beta_fast"])), 0)
    last = min(math.ceil(turning(scaling["beta_slow"])), dim - 1)
    ramp = ((torch.arange(dim // 2).float() - first) / (last - first + (0.001 if first == last else 0))).clamp(0, 1)
    return inv_freq / factor * ramp + inv_freq * (1 - ramp), 0.1 * math.log(factor) + 1.0
