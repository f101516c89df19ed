"""PEFT adapters as clients of TensorRT-LLM's backend send them: what its hf_lora_convert.py writes, by its description.

One row a module of a layer: its input matrix (r, in), its output matrix (out, r) with the scale in it, both flattened, then
zeros up to the longest row. Both arrays have a batch dimension in front.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

MODULE_IDS = {
    "qkv_proj": 0,
    "q_proj": 1,
    "k_proj": 2,
    "v_proj": 3,
    "o_proj": 4,
    "gate_proj": 5,
    "down_proj": 6,
    "up_proj": 7,
    "gate_up_proj": 18,
}
_NAME = re.compile(r".*\.layers\.(\d+)\.\w+\.(\w+)\.lora_A\.weight")


def lora_arrays(directory: Path) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
    """`lora_weights` (1, M, W) and `lora_config` (1, M, 3) of the adapter that PEFT saved in `directory`."""
    config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    tensors = load_file(directory / "adapter_model.safetensors")
    rows, modules = [], []
    for name, a in sorted(tensors.items()):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        b = tensors[name.replace("lora_A", "lora_B")].astype(np.float32) * scale
        if match[2] == "gate_up_proj":
            gate, up = np.split(b, 2)
            b = np.concatenate([up, gate])
        rows.append(np.concatenate([a.astype(np.float32).reshape(-1), b.reshape(-1)]))
        modules.append([MODULE_IDS[match[2]], int(match[1]), a.shape[0]])
    weights = np.zeros((1, len(rows), max(row.size for row in rows)), np.float16)
    for index, row in enumerate(rows):
        weights[0, index, : row.size] = row
    return weights, np.array([modules], np.int32)


def save_npy(source: Path, directory: Path) -> Path:
    """Write both as the `.npy` files that a client's `--lora-path` names, into `directory`."""
    weights, config = lora_arrays(source)
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "model.lora_weights.npy", weights)
    np.save(directory / "model.lora_config.npy", config)
    return directory


def load_npy(directory: Path) -> dict[str, NDArray[Any]]:
    """The tensors that such a client sends."""
    return {name: np.load(directory / f"model.{name}.npy") for name in ("lora_weights", "lora_config")}
