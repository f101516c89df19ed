"""A tiny engine that takes adapters, and adapters of its checkpoint that PEFT saved: quick to build, and PEFT's word on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from support.adapters import load_adapter, random_adapter
from support.checkpoints import random_checkpoint, small_tokenizer
from support.lora_npy import load_npy, save_npy
from trierarch.builder.adapter_source import read_adapter
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import MANIFEST_NAME, DType, EngineManifest
from trierarch.builder.packed_adapter import write_packed


@dataclass(frozen=True, slots=True)
class AdaptedEngine:
    """Two slots, and memory for three or four adapters."""

    checkpoint: Path
    engine: Path
    peft: Path
    """Directories `1`, `2`, ... that PEFT saved: rank 8, float16, a scale of 2."""

    def put(self, shelf: Path, name: str, number: int) -> None:
        """Put an adapter into a directory, as an operator does."""
        packed = read_adapter(self.peft / str(number), self.engine, EngineManifest.load(self.engine))
        write_packed(packed, shelf / f"{name}.safetensors")

    def sent(self, number: int) -> dict[str, NDArray[Any]]:
        """What a client of TensorRT-LLM's backend sends, from the files that it has."""
        folder = self.peft.with_name("npy") / str(number)
        return load_npy(folder if folder.exists() else save_npy(self.peft / str(number), folder))

    def greedy(self, number: int, prompt: str, num_tokens: int) -> list[int]:
        """The tokens that PEFT draws after a prompt."""
        model: Any = load_adapter(self.checkpoint, self.peft / str(number))
        tokens = small_tokenizer().encode(prompt).ids
        with torch.no_grad():
            for _ in range(num_tokens):
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens[-num_tokens:]


def adapted_engine(folder: Path, num_adapters: int) -> AdaptedEngine:
    """Build it, and save the adapters 1 to `num_adapters`."""
    checkpoint = random_checkpoint("llama", folder / "checkpoint")
    engine, peft = folder / "engine", folder / "peft"
    build(
        BuildConfig(
            model=str(checkpoint),
            output=engine,
            dtype=DType.FLOAT32,
            kv_cache_bytes=64 << 20,
            max_adapters=2,
            max_lora_rank=8,
        )
    )
    for number in range(1, num_adapters + 1):
        random_adapter(checkpoint, peft / str(number), rank=8, alpha=16, seed=number, dtype=torch.float16)
    manifest = EngineManifest.load(engine)
    assert manifest.lora is not None
    room = 4 * read_adapter(peft / "1", engine, manifest).num_bytes
    small = manifest.model_copy(update={"lora": manifest.lora.model_copy(update={"host_bytes": room})})
    (engine / MANIFEST_NAME).write_text(small.to_json())
    return AdaptedEngine(checkpoint, engine, peft)
