"""Engines of random weights in a model's real shape, written by the builder's own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from trierarch.benchmarks.adapter_files import write_adapters
from trierarch.benchmarks.random_checkpoint import RandomCheckpoint
from trierarch.builder.blueprint import Blueprint
from trierarch.builder.decoder import read_decoder
from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import (
    BuiltWith,
    DType,
    EngineManifest,
    KvCache,
    KvType,
    Limits,
    Lora,
    Target,
    Tokens,
    WeightType,
)
from trierarch.builder.model import read_model
from trierarch.builder.progress import NoProgress

_RESERVE: Final = 1.05
"""Of the disk, beside what is written."""


def write_engine(
    folder: Path,
    checkpoint: RandomCheckpoint,
    dtype: DType,
    limits: Limits,
    *,
    quantization: WeightType | None = None,
    kv_dtype: KvType | None = None,
    kv_memory_fraction: float,
    lora: Lora | None = None,
) -> EngineManifest:
    """Write an engine without kernels or tokenizer into `folder`, which is made anew.

    Raises:
        ResourceError: the disk has no room for it.
    """
    decoder = read_decoder(checkpoint.config, limits.max_seq_len)
    tokens = Tokens(bos=None, eos=(checkpoint.config["eos_token_id"],), pad=0, add_bos=False)
    model = read_model(checkpoint, decoder, tokens, dtype, quantization, kv_dtype)
    kv_cache = KvCache(
        dtype=model.kv_dtype,
        memory_fraction=kv_memory_fraction,
        bytes_per_token=model.kv_bytes_per_token,
        enable_prefix_caching=False,
    )
    manifest = EngineManifest(
        name=folder.name,
        target=Target.TORCH,
        built_with=BuiltWith(trierarch="source", torch=torch.__version__),
        source=model.source,
        architecture=model.architecture,
        dtype=dtype,
        quantization=model.quantization,
        limits=limits,
        kv_cache=kv_cache,
        tokens=tokens,
        lora=lora,
        files={},
    )
    blueprint = Blueprint(manifest, model.weights, {})
    _make_room(folder, blueprint.num_bytes)
    return blueprint.write(folder, NoProgress())


def write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    """A folder with nothing but `config.json`: what rivals need to make weights of the same shape themselves."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    return folder


def write_random_adapters(folder: Path, manifest: EngineManifest, count: int, rank: int, seed: int) -> list[str]:
    """Adapters of all linear layers beside an engine; their names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = [f"a{index:02}" for index in range(count)]
    write_adapters(folder, manifest, dict.fromkeys(names, rank), seed)
    return names


def step_bytes(manifest: EngineManifest) -> int:
    """Bytes of weights that a step reads: all but the table of embeddings, of which it reads a row a token."""
    architecture = manifest.architecture
    num_bytes = sum(file.num_bytes for name, file in manifest.files.items() if name.endswith(".safetensors"))
    if architecture.tie_embeddings:
        return num_bytes
    return num_bytes - architecture.vocab_size * architecture.hidden_size * manifest.dtype.num_bytes


def _make_room(folder: Path, num_bytes: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes * _RESERVE:
        raise ResourceError(
            f"{folder} has {free} bytes free and the engine takes {num_bytes}: free some, or name another disk with TMPDIR"
        )
