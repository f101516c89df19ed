"""A tiny engine with random weights, straight from an Architecture: no checkpoint, no builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trierarch.builder.compile import best_instruction_set, compile_library
from trierarch.builder.manifest import (
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Architecture,
    BuiltWith,
    DType,
    EngineManifest,
    Head,
    KvCache,
    KvType,
    Layer,
    Limits,
    Rope,
    Target,
    Tokens,
)
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES
from trierarch.python_backend.executors.weight_table import weight_shapes


def tiny_architecture(**changes: Any) -> Architecture:
    """Two layers, one of them windowed; grouped heads."""
    fields: dict[str, Any] = {
        "family": "TinyForCausalLM",
        "vocab_size": 50,
        "hidden_size": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "layers": (Layer(), Layer(window=5)),
        "ropes": (Rope(rotary_dim=8),),
        "norm_eps": 1e-5,
        "attention_scale": 8**-0.5,
        "tie_embeddings": True,
        "max_position_embeddings": 128,
    }
    return Architecture(**(fields | changes))


def tiny_manifest(
    architecture: Architecture,
    dtype: DType = DType.FLOAT32,
    num_blocks: int = 64,
    kv_dtype: KvType | None = None,
    block_size: int = 4,
    **limits: int,
) -> EngineManifest:
    """Blocks of `block_size` tokens, sequences of at most 64; keys and values of `dtype` unless said otherwise."""
    kv_dtype = kv_dtype or KvType(dtype)
    bytes_per_token = architecture.kv_bytes_per_token(kv_dtype)
    return EngineManifest(
        name="tiny",
        target=Target.TORCH,
        built_with=BuiltWith(trierarch="0", torch="0"),
        source="random",
        architecture=architecture,
        dtype=dtype,
        limits=Limits(**({"max_seq_len": 64, "max_batch_size": 8} | limits)),
        kv_cache=KvCache(
            dtype=kv_dtype,
            block_size=block_size,
            num_bytes=num_blocks * block_size * bytes_per_token,
            bytes_per_token=bytes_per_token,
        ),
        tokens=Tokens(bos=None, eos=(1,), pad=0, add_bos=False),
        files={},
    )


def random_weights(
    architecture: Architecture, dtype: DType = DType.FLOAT32, seed: int = 0, head: Head | None = None
) -> dict[str, torch.Tensor]:
    """Every weight, of a size that keeps activations near 1; of a head, whose guesses are the target's first ids."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(architecture, head).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.1 * noise
        elif name.endswith("inv_freq"):
            weights[name] = 10_000.0 ** -torch.linspace(0, 1, shape[0] + 1)[:-1]
        elif name == "head.target_ids":
            weights[name] = torch.arange(shape[0])
        else:
            weights[name] = (noise * shape[-1] ** -0.5).to(TORCH_DTYPES[dtype])
    return weights


def write_weights(engine: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write what `load_weights` reads."""
    save_file(weights, engine / WEIGHTS_NAME)


def write_engine(engine: Path, manifest: EngineManifest, weights: dict[str, torch.Tensor]) -> None:
    """Write what `open_executor` opens."""
    write_weights(engine, weights)
    (engine / MANIFEST_NAME).write_text(manifest.to_json())


def with_kernels(engine: Path, manifest: EngineManifest) -> EngineManifest:
    """The manifest with this machine's best kernels, which are written into the engine.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    (engine / "kernels.so").write_bytes(compile_library(best_instruction_set()))
    return manifest.model_copy(update={"kernels": "kernels.so"})
