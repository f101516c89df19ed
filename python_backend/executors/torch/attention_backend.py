"""AttentionBackend: who computes a step's attention."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch

from trierarch.python_backend.executors.torch.attention_tile import BlockShape, SequenceGroup
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a layer's attention is, its window aside."""

    num_kv_heads: int
    scale: float
    softcap: float | None


class StepAttention(Protocol):
    """Attention of a step's tokens, in layers of one window."""

    def __call__(self, queries: torch.Tensor, kv: LayerKv, shape: AttentionShape) -> torch.Tensor:
        """queries: (num_tokens, num_heads, head_dim) → (num_tokens, num_heads * head_dim). Keys of all tokens are in `kv`."""
        ...


@runtime_checkable
class StaticAttention(StepAttention, Protocol):
    """A step's attention that becomes another step's when its tensors are overwritten."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that it reads beside what it is called with."""
        ...

    @property
    def constants(self) -> tuple[int, ...]:
        """All else: two with the same constants and windows have tensors of the same shapes."""
        ...


A_co = TypeVar("A_co", bound=StepAttention, covariant=True)


class AttentionBackend(Protocol[A_co]):
    """Makes an A_co of a step, once for all layers."""

    @property
    def label(self) -> str:
        """For people."""
        ...

    def of_step(
        self,
        groups: Sequence[SequenceGroup],
        windows: Collection[int | None],
        shape: BlockShape,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Mapping[int | None, A_co]:
        """A layer's window -> its attention. groups: all tokens of the step. dtype: of activations."""
        ...


AnyAttentionBackend = AttentionBackend[StepAttention]
StaticAttentionBackend = AttentionBackend[StaticAttention]
