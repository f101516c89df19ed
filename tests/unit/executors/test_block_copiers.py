"""A block's content is the same wherever it was meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trierarch.python_backend.executors.offload.array_copier import ArrayCopier
from trierarch.python_backend.executors.offload.block_copier import BlockCopier
from trierarch.python_backend.executors.torch import block_copier
from trierarch.python_backend.executors.torch.block_copier import TorchCopier
from trierarch.python_backend.kv.copies import Arrival, Leaving

NUM_BLOCKS = 6


def make_arrays() -> list[npt.NDArray[Any]]:
    """Codes and their scales, as int8 keys and values have them."""
    random = np.random.default_rng(0)
    codes = random.integers(-100, 100, (3, 2, NUM_BLOCKS, 2, 4, 8)).astype(np.int8)
    return [codes, random.random((3, 2, NUM_BLOCKS, 2, 4)).astype(np.float32)]


def make_copier(way: str, arrays: list[npt.NDArray[Any]], num_slots: int) -> BlockCopier:
    if way == "numpy":
        return ArrayCopier(arrays, num_slots, "cpu")
    return TorchCopier([torch.from_numpy(array) for array in arrays], num_slots, "torch")


@pytest.mark.parametrize("staged_bytes", [1, 1 << 20])
@pytest.mark.parametrize("way", ["numpy", "torch"])
def test_out_and_back_by_memory_and_by_bytes(way: str, staged_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_copier, "MAX_STAGED_BYTES", staged_bytes)
    arrays = make_arrays()
    before = [array.copy() for array in arrays]
    copier = make_copier(way, arrays, num_slots=3)
    assert copier.block_bytes == sum(array.nbytes // NUM_BLOCKS for array in arrays)
    copier.leave([Leaving(1, 2), Leaving(4, 0), Leaving(5, 1)])
    for array in arrays:
        array[:, :, [1, 4, 5]] = 0
    copier.bring([Arrival(b"", 5, 2), Arrival(b"", 1, 0)])
    content = bytearray(b"".join(copier.pieces(1)))
    assert len(content) == copier.block_bytes
    copier.fill(4, content)
    for array, old in zip(arrays, before, strict=True):
        assert (array[:, :, [5, 1, 4]] == old[:, :, [1, 4, 5]]).all()
        assert (array[:, :, [0, 2, 3]] == old[:, :, [0, 2, 3]]).all(), "the others"


def test_the_form_tells_contents_apart_that_are_laid_out_otherwise() -> None:
    arrays = make_arrays()
    forms = {make_copier(way, its, 1).form for way in ("numpy", "torch") for its in (arrays, arrays[:1])}
    assert len(forms) == 4
