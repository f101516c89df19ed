"""CodedTensor: a matrix of a Hugging Face checkpoint that is stored as codes, in one or several tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import torch

from trierarch.builder.codes import Codes, CodeType
from trierarch.builder.safetensors_header import Header

SCALE_TYPES: Final = ("F32", "BF16", "F16")
"""That scales are read in."""
AGAIN: Final = "download the checkpoint again"


class CodedTensor(Protocol):
    """One of them, known without reading any."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, inputs) of its elements."""
        ...

    @property
    def code_type(self) -> CodeType:
        """What an engine would keep."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors that hold it."""
        ...

    def codes(self, parts: Sequence[torch.Tensor]) -> Codes:
        """What an engine stores. parts: those named by `parts`, in that order.

        Raises:
            CheckpointError: a number or a scale is not finite, or inputs are not in the order of their groups.
        """
        ...

    def elements(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What they stand for, in float32.

        Raises:
            CheckpointError: as `codes`.
        """
        ...


class CodedFormat(Protocol):
    """How a checkpoint stores its quantised matrices."""

    @property
    def label(self) -> str:
        """For people."""
        ...

    def find(self, headers: Mapping[str, Header]) -> Mapping[str, CodedTensor]:
        """Name of the weight that each stands for -> the quantised matrices among a checkpoint's tensors.

        Raises:
            CheckpointError: a tensor is missing, or does not fit the others.
        """
        ...
