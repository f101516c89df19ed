"""HeldTensors: a safetensors file of tensors that are in memory already, such as those that nvidia-modelopt quantised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.weight import Entry

_NAMES: Final = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int64: "I64",
}


@dataclass(frozen=True, slots=True)
class HeldTensor:
    """One of them. Implements StoredTensor."""

    name: str
    value: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.entries[0].num_bytes

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The one tensor that it is stored as."""
        return (Entry(self.name, _NAMES[self.value.dtype], tuple(self.value.shape)),)

    def parts(self, checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
        """The tensor; `checkpoint` is not asked."""
        yield self.value.contiguous()


def held_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[HeldTensor, ...]:
    """By name, so that equal tensors give equal files."""
    return tuple(HeldTensor(name, tensor.detach().cpu()) for name, tensor in sorted(tensors.items()))
