"""FP8 checkpoints as others publish them, made of a small random one: what stands where is worked out here by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

E4M3 = torch.float8_e4m3fn
Tensors = dict[str, torch.Tensor]
Block = tuple[int, int]


def by_blocks(block: Block) -> Callable[[str, torch.Tensor], Tensors]:
    """A scale for each block, those at the ends being smaller."""

    def quantise(stem: str, weight: torch.Tensor) -> Tensors:
        rows, inputs = (-(-size // per) for size, per in zip(weight.shape, block, strict=True))
        scales, codes = torch.empty(rows, inputs), torch.empty_like(weight)
        for row in range(rows):
            for column in range(inputs):
                place = (
                    slice(row * block[0], (row + 1) * block[0]),
                    slice(column * block[1], (column + 1) * block[1]),
                )
                scales[row, column] = weight[place].abs().max() / 448
                codes[place] = weight[place] / scales[row, column]
        return {f"{stem}.weight": _codes(codes), f"{stem}.weight_scale_inv": scales}

    return quantise


def by_rows(stem: str, weight: torch.Tensor) -> Tensors:
    """compressed-tensors' strategy channel: (rows, 1), in bfloat16 where the model was."""
    scales = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    return {f"{stem}.weight": _codes(weight / scales.float()), f"{stem}.weight_scale": scales}


def by_tensor(stem: str, weight: torch.Tensor) -> Tensors:
    """One number, and static scales of activations, as modelopt and compressed-tensors' strategy tensor have them."""
    scale = weight.abs().max() / 448
    return {
        f"{stem}.weight": _codes(weight / scale),
        f"{stem}.weight_scale": scale,
        f"{stem}.input_scale": torch.tensor(0.01),
    }


def _codes(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(-448, 448).to(E4M3)


def elements(tensors: Mapping[str, torch.Tensor], name: str, block: Block | None) -> torch.Tensor:
    """What a tensor stands for: each element's own scale is looked up by its place."""
    weight = tensors[name]
    if weight.dtype is not E4M3:
        return weight.float()
    scales = tensors.get(f"{name}_scale_inv", tensors.get(f"{name}_scale"))
    assert scales is not None
    rows, inputs = torch.arange(weight.shape[0])[:, None], torch.arange(weight.shape[1])[None]
    if block is not None:
        own = scales[rows // block[0], inputs // block[1]]
    else:
        own = scales if scales.numel() == 1 else scales[rows, 0 * inputs]
    return weight.float() * own.float()


def publish(
    checkpoint: Path,
    quantise: Callable[[str, torch.Tensor], Tensors],
    config: Mapping[str, Any],
    *,
    left_out: tuple[str, ...] = ("lm_head", "embed_tokens"),
    more: Mapping[str, torch.Tensor] | None = None,
) -> Tensors:
    """Quantise the matrices of a checkpoint where it lies, but for those whose name has one of `left_out` in it, and say so
    with `config` as `quantization_config`; `more` are further tensors. Returns all tensors."""
    tensors: Tensors = {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        is_matrix = kind == "weight" and weight.dim() == 2 and not stem.endswith(("mlp.gate", "router"))
        if is_matrix and not any(part in name for part in left_out):
            tensors |= quantise(stem, weight.float())
        else:
            tensors[name] = weight
    tensors |= more or {}
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    change_config(checkpoint, quantization_config=dict(config))
    return tensors


def change_config(checkpoint: Path, **values: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def fp8_config(block: Block | None) -> dict[str, Any]:
    """As Qwen3's FP8 checkpoints say it."""
    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
    return said if block is None else said | {"weight_block_size": list(block)}


def compressed_config(strategy: str, **weights: Any) -> dict[str, Any]:
    """As RedHat's FP8 checkpoints say it."""
    args = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy, **weights}
    activations = {**args, "strategy": "token", "dynamic": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": args, "input_activations": activations},
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


MODELOPT_CONFIG = {
    "quant_method": "modelopt",
    "quant_algo": "FP8",
    "ignore": ["lm_head"],
    "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
    "producer": {"name": "modelopt", "version": "0.29.0"},
}
