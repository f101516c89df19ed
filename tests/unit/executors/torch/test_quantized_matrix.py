"""Codes against arithmetic done one element at a time."""

from __future__ import annotations

import pytest
import torch

from trierarch.builder.manifest import GROUP_SIZE
from trierarch.python_backend.executors.torch.embedding import Embedding
from trierarch.python_backend.executors.torch.linear import QuantizedLinear, make_linear
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix

LEADS = ((5,), (3, 5))
"""Leading axes of a matrix, and of experts."""


def random_matrix(bits: int, *rows: int, num_groups: int = 3) -> QuantizedMatrix:
    generator = torch.Generator().manual_seed(bits)
    scales = torch.rand(*rows, num_groups, generator=generator).half()
    if bits == 8:
        shape = (*rows, num_groups * GROUP_SIZE)
        return QuantizedMatrix(torch.randint(-128, 128, shape, generator=generator).to(torch.int8), scales, None)
    shape = (*rows, num_groups * GROUP_SIZE // 2)
    codes = torch.randint(256, shape, generator=generator).to(torch.uint8)
    return QuantizedMatrix(codes, scales, torch.randn(scales.shape, generator=generator).half())


def element(matrix: QuantizedMatrix, row: int, column: int) -> float:
    scale = matrix.scales[row, column // GROUP_SIZE].item()
    if matrix.offsets is None:
        return matrix.codes[row, column].item() * scale
    byte = int(matrix.codes[row, column // 2].item())
    return (byte >> 4 if column % 2 else byte & 15) * scale + matrix.offsets[row, column // GROUP_SIZE].item()


@pytest.mark.parametrize("bits", [8, 4])
def test_dequantizes_as_the_manifest_says(bits: int) -> None:
    matrix = random_matrix(bits, 5)
    assert (matrix.bits, matrix.shape) == (bits, (5, 96))
    values = matrix.dequantize(torch.float32)
    expected = [[element(matrix, row, column) for column in range(96)] for row in range(5)]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    assert matrix.dequantize(torch.bfloat16).equal(values.bfloat16())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", LEADS)
def test_its_parts_are_those_of_the_whole(bits: int, rows: tuple[int, ...]) -> None:
    matrix = random_matrix(bits, *rows)
    values = matrix.dequantize(torch.float32)
    assert matrix.shape == values.shape
    indices = torch.tensor([2, 0, 2])
    assert matrix.rows(indices, torch.float32).equal(values[indices])
    if len(rows) == 2:
        assert torch.stack([one.dequantize(torch.float32) for one in matrix.unbind()]).equal(values)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_and_embedding_compute_with_the_elements(bits: int, dtype: torch.dtype) -> None:
    matrix = random_matrix(bits, 5)
    linear = make_linear(matrix, torch.ones(5, dtype=dtype))
    assert isinstance(linear, QuantizedLinear)
    x = torch.randn(7, 96, dtype=dtype)
    exact = x.double() @ matrix.dequantize(dtype).double().T + 1
    torch.testing.assert_close(linear(x).double(), exact, rtol=2**-7, atol=0.5 if dtype is torch.bfloat16 else 0.1)
    assert linear(x).dtype is dtype
    token_ids = torch.tensor([4, 1])
    assert Embedding(matrix, 3.0, dtype)(token_ids).equal(matrix.dequantize(dtype)[token_ids] * 3.0)
