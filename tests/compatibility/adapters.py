"""LoRA adapters for clients that send them: random ones, as the `.npy` files that TensorRT-LLM's converter would write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save_file

from trierarch.builder.manifest import EngineManifest

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.lora_npy import save_npy

RANK: Final = 8
HOST_BYTES: Final = 12 << 20
"""Of an engine of the demo checkpoint: two of them fit, and the third drives out the first."""


def write_adapters(engine: Path, folder: Path, count: int) -> None:
    """Write adapters `1` to `count` into `folder`, each a directory that a client's --lora-path names."""
    architecture = EngineManifest.load(engine).architecture
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    heads, kv_heads = (number * architecture.head_dim for number in (architecture.num_heads, architecture.num_kv_heads))
    modules = {
        "self_attn.q_proj": (hidden, heads),
        "self_attn.k_proj": (hidden, kv_heads),
        "self_attn.v_proj": (hidden, kv_heads),
        "self_attn.o_proj": (heads, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    for number in range(1, count + 1):
        generator = np.random.default_rng(number)
        tensors = {}
        for layer in range(len(architecture.layers)):
            for module, (in_size, out_size) in modules.items():
                stem = f"base_model.model.model.layers.{layer}.{module}"
                down, up = generator.standard_normal((RANK, in_size)), generator.standard_normal((out_size, RANK))
                tensors[f"{stem}.lora_A.weight"] = (down * in_size**-0.5).astype(np.float32)
                tensors[f"{stem}.lora_B.weight"] = (0.1 * up * RANK**-0.5).astype(np.float32)
        source = folder / f"{number}-peft"
        source.mkdir(parents=True)
        save_file(tensors, source / "adapter_model.safetensors")
        (source / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": RANK}), encoding="utf-8")
        save_npy(source, folder / str(number))
