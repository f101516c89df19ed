"""TorchCopier: blocks of tensors on any device. On CUDA nothing but a gather on the device is waited for by a step.

What leaves is gathered in the stream of the steps, so before the next of them writes over it, and goes on to page-locked
host memory in a stream of its own. What comes back goes through that stream too, behind all that leaves: no slot is read
before its content is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from trierarch.python_backend.executors.offload.array_copier import no_room
from trierarch.python_backend.executors.offload.block_copier import BLOCK_AXIS, block_bytes_of
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.kv.copies import Arrival, Leaving

MAX_STAGED_BYTES: Final = 32 << 20
"""Of the device's memory that blocks may take on their way out, beyond the KV cache."""


class TorchCopier:
    """Implements BlockCopier."""

    @torch.inference_mode()
    def __init__(self, arrays: Sequence[torch.Tensor], num_slots: int, layout: str) -> None:
        """As ArrayCopier. Raise ResourceError where there is no room for the slots."""
        # As bytes, since not every operator takes every type. What a tensor of other elements lies in is the same memory.
        self._arrays = tuple(array.view(torch.uint8) for array in arrays)
        self._device = arrays[0].device
        self._stream: torch.cuda.Stream | None = _side_stream(self._device)
        shapes = [(*array.shape[:BLOCK_AXIS], *array.shape[BLOCK_AXIS + 1 :]) for array in self._arrays]
        try:
            self._slots = tuple(self._allocate((num_slots, *shape)) for shape in shapes)
        except (RuntimeError, MemoryError, ValueError) as error:  # torch's names for it, and numpy's
            raise no_room(num_slots, self.block_bytes) from error
        self.form = f"{layout} {[(shape, str(array.dtype)) for shape, array in zip(shapes, arrays, strict=True)]}"

    @property
    def block_bytes(self) -> int:
        """See BlockCopier.block_bytes."""
        return block_bytes_of(self._arrays)

    @property
    def pinned_bytes(self) -> int:
        """See BlockCopier.pinned_bytes."""
        return 0 if self._stream is None else sum(slots.nbytes for slots in self._slots)

    @torch.inference_mode()
    def leave(self, leaving: Sequence[Leaving]) -> None:
        """See BlockCopier.leave. What is staged at a time is bounded: a step that evicts more waits for the rest."""
        if self._stream is not None:  # Also if nothing leaves: blocks that come back were somebody's in these steps.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        at_once = max(1, MAX_STAGED_BYTES // self.block_bytes)
        for first in range(0, len(leaving), at_once):
            if first:
                self._wait()
            self._leave(leaving[first : first + at_once])

    @torch.inference_mode()
    def bring(self, arrivals: Sequence[Arrival]) -> None:
        """See BlockCopier.bring."""
        with self._beside():
            for one in arrivals:
                assert one.slot is not None
                for slots, array in zip(self._slots, self._arrays, strict=True):
                    content = slots[one.slot].to(self._device, non_blocking=True)
                    array.select(BLOCK_AXIS, one.block_id).copy_(content, non_blocking=True)
        self._wait()

    @torch.inference_mode()
    def fill(self, block_id: int, content: bytearray) -> None:
        """See BlockCopier.fill."""
        offset = 0
        with self._beside():
            for slots, array in zip(self._slots, self._arrays, strict=True):
                part = torch.frombuffer(content, dtype=torch.uint8, count=slots[0].numel(), offset=offset)
                array.select(BLOCK_AXIS, block_id).copy_(part.view(slots.shape[1:]))
                offset += len(part)
        self._wait()

    @torch.inference_mode()
    def pieces(self, slot: int) -> list[memoryview]:
        """See BlockCopier.pieces."""
        self._wait()
        return [_array(slots[slot]).data for slots in self._slots]

    def _allocate(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self._stream is not None:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        # The operating system lends zeroed pages as they are first touched.
        return torch.from_numpy(np.zeros(shape, np.uint8))

    def _leave(self, leaving: Sequence[Leaving]) -> None:
        ids = on_device(torch.tensor([one.block_id for one in leaving]), self._device)
        staged = [array.index_select(BLOCK_AXIS, ids).movedim(BLOCK_AXIS, 0).contiguous() for array in self._arrays]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with self._beside():
            for contents, slots in zip(staged, self._slots, strict=True):
                for content, one in zip(contents, leaving, strict=True):
                    slots[one.slot].copy_(content, non_blocking=True)
                if self._stream is not None:
                    contents.record_stream(self._stream)

    def _beside(self) -> AbstractContextManager[object]:
        """Beside the steps, where the device can do that."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _wait(self) -> None:
        """Until all copies so far are done."""
        if self._stream is not None:
            self._stream.synchronize()


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _array(content: torch.Tensor) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[np.uint8] = content.view(-1).numpy()
    return array
