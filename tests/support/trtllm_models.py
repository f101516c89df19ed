"""Small random models of the families that TensorRT-LLM compiles, and engines for it that are built of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from support.checkpoints import random_model, save_checkpoint
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import EngineManifest, TensorRTLLM

ODD_VOCAB_SIZE = 323
"""Which no number of GPUs divides."""

_GEMMA3: Mapping[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
ENGINE_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "llama-bias": {},
    "llama3": {},
    "llama-yarn": {},
    "mistral": {},
    "mixtral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3-moe": {"mlp_only_layers": []},
    "phi3": {},
    "phi3-longrope": {},
    "gemma2": {},
    "gemma3": _GEMMA3,
}
"""Family of support.checkpoints -> what its configuration must say for TensorRT-LLM to compile it."""

WIDE: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
}
"""Sizes that blocks of 128 inputs divide, over two GPUs too."""


def save_random(family: str, directory: Path, **overrides: Any) -> Any:
    """Save a random model of four layers, and return it: in float32, its odd vocabulary included."""
    options = {"num_hidden_layers": 4, "vocab_size": ODD_VOCAB_SIZE, **ENGINE_FAMILIES.get(family, {}), **overrides}
    model = random_model(family, seed=1, **options)
    save_checkpoint(model, directory)
    return model


def build_for(checkpoint: Path, output: Path, version: str = "1.2", **options: Any) -> EngineManifest:
    """Build an engine for TensorRT-LLM; `options` are BuildConfig's."""
    config = {
        "model": str(checkpoint),
        "output": output,
        "target": "tensorrt_llm",
        "tensorrt_llm_version": version,
        **options,
    }
    return build(BuildConfig.model_validate(config))


def record_of(manifest: EngineManifest) -> TensorRTLLM:
    """What an engine for TensorRT-LLM is opened with."""
    assert manifest.tensorrt_llm is not None
    return manifest.tensorrt_llm


def windows_of(manifest: EngineManifest) -> list[int] | None:
    """`max_attention_window` that the engine is loaded with."""
    found: Any = record_of(manifest).llm_args["kv_cache_config"]
    windows: list[int] | None = found.get("max_attention_window")
    return windows


def prompt(length: int = 100) -> list[int]:
    """Random tokens, longer than any window of a random model."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(ODD_VOCAB_SIZE, (length,), generator=generator).tolist()


@torch.inference_mode()
def reference_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """(n, vocab) float32, by transformers."""
    logits: torch.Tensor = model(torch.tensor([tokens])).logits[0].float()
    return logits


def relative_errors(logits: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Of each position: (n)."""
    return (logits - exact).norm(dim=1) / exact.norm(dim=1)
