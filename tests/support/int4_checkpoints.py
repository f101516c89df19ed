"""Checkpoints of 4 bits as others publish them, made of a small random one; the packing is written out as its authors say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of eight columns, those that a word holds from its lowest bits on (AutoAWQ's packing_utils)."""

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "packed": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
            }
        },
    },
    "packed with zeros": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "weights": {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 64}
            }
        },
    },
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
}


def publish_int4(checkpoint: Path, kind: str) -> Tensors:
    """Make the matrices of a checkpoint's layers into 4 bits where it lies, as `kind` of CONFIGS. Returns what each weight
    stands for."""
    group_size = 64
    stored: Tensors = {}
    exact: Tensors = {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if weight.dim() != 2 or "layers." not in name or stem.endswith("mlp.gate"):
            stored[name] = exact[name] = weight
            continue
        rows, inputs = weight.shape
        groups = -(-inputs // group_size)
        codes = torch.randint(16, (rows, inputs), generator=generator)
        zeros = torch.randint(1, 16, (rows, groups), generator=generator)
        if kind in ("packed", "gptq_v2"):
            zeros[:] = 8
        scales = ((0.5 + torch.rand(rows, groups, generator=generator)) / 64).to(
            torch.bfloat16 if kind == "packed" else torch.float16
        )
        group = torch.arange(inputs) // group_size
        exact[name] = (codes - zeros[:, group]) * scales[:, group].float()
        stored |= _packed(stem, kind, codes, zeros, scales)
        if kind.startswith("gptq"):
            stored[f"{stem}.g_idx"] = group.int()
    save_file(stored, checkpoint / "model.safetensors", {"format": "pt"})
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": CONFIGS[kind]}))
    return exact


def _packed(stem: str, kind: str, codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> Tensors:
    if kind.startswith("packed"):
        found = {
            f"{stem}.weight_packed": _words(codes),
            f"{stem}.weight_scale": scales,
            f"{stem}.weight_shape": torch.tensor(codes.shape),
        }
        return found if kind == "packed" else found | {f"{stem}.weight_zero_point": _words(zeros.T).T.contiguous()}
    if kind.startswith("gptq"):
        stored = zeros - 1 if kind == "gptq" else zeros
        words = {"qweight": _words(codes).T, "qzeros": _words(stored.T)}
    else:
        words = {"qweight": _words(codes.T, _AWQ_ORDER), "qzeros": _words(zeros.T, _AWQ_ORDER)}
    return {f"{stem}.{name}": one.contiguous() for name, one in (words | {"scales": scales.T}).items()}


def _words(numbers: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """(n, m) of 0 to 15 → (n, m / 8, rounded up) int32."""
    rows, columns = numbers.shape
    padded = torch.zeros(rows, -(-columns // 8) * 8, dtype=torch.int64)
    padded[:, :columns] = numbers
    words = sum(padded[:, one::8] << (4 * place) for place, one in enumerate(order))
    assert isinstance(words, torch.Tensor)
    return words.to(torch.uint32).view(torch.int32)
