"""E4M3 weights: what they stand for, and the product that a GPU makes of them, with the GPU's part done plainly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trierarch.builder.quantize_fp8 import quantize_fp8
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.linear import QuantizedLinear, make_linear
from trierarch.python_backend.executors.torch.row_codes import quantize_rows
from trierarch.python_backend.executors.torch.scaled_linear import ScaledLinear


def random_matrix(*shape: int) -> tuple[Fp8Matrix, torch.Tensor]:
    """Quantised, and exact; rows of very different sizes."""
    generator = torch.Generator().manual_seed(len(shape))
    exact = torch.randn(shape, generator=generator) * 10.0 ** torch.arange(shape[-2])[:, None]
    codes = quantize_fp8("w", exact.view(-1, shape[-1]))
    return Fp8Matrix(codes.codes.view(shape), codes.scales.view(shape[:-1])), exact


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    use_fast_accum: bool,
) -> torch.Tensor:
    """torch._scaled_mm, and what it checks."""
    assert (a.dtype, b.dtype) == (torch.float8_e4m3fn, torch.float8_e4m3fn)
    assert a.is_contiguous()
    assert b.t().is_contiguous()
    assert (scale_a.shape, scale_b.shape) == ((len(a), 1), (1, b.shape[1]))
    assert scale_a.dtype == scale_b.dtype == torch.float32
    assert out_dtype is torch.bfloat16
    assert bias is None or bias.dtype is torch.bfloat16
    exact = (a.float() * scale_a) @ (b.float() * scale_b)
    return (exact if bias is None else exact + bias.float()).to(out_dtype)


def test_dequantizes_as_the_manifest_says() -> None:
    matrix, exact = random_matrix(5, 48)
    assert matrix.shape == (5, 48)
    values = matrix.dequantize(torch.float32)
    expected = [[matrix.codes[i, j].item() * matrix.scales[i].item() for j in range(48)] for i in range(5)]
    torch.testing.assert_close(values, torch.tensor(expected))
    torch.testing.assert_close(values.amax(1).maximum(-values.amin(1)), exact.abs().amax(1))
    assert (values - exact).norm() < 0.04 * exact.norm()
    assert matrix.dequantize(torch.bfloat16).equal(values.bfloat16())


def test_its_parts_are_those_of_the_whole() -> None:
    matrix, _ = random_matrix(3, 5, 48)
    values = matrix.dequantize(torch.float32)
    assert matrix.shape == values.shape == (3, 5, 48)
    assert torch.stack([one.dequantize(torch.float32) for one in matrix.unbind()]).equal(values)
    indices = torch.tensor([2, 0, 2])
    assert matrix.rows(indices, torch.float32).equal(values[indices])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 7])
def test_the_scaled_product_is_that_of_the_elements(num_rows: int, dtype: torch.dtype) -> None:
    matrix, _ = random_matrix(5, 48)
    x, bias = torch.randn(num_rows, 48, dtype=dtype), torch.ones(5, dtype=dtype)
    found = ScaledLinear(matrix, bias, product)(x)
    assert found.dtype is dtype
    codes, scales = quantize_rows(x, torch.float8_e4m3fn)
    rounded = codes.float() * scales[:, None]
    torch.testing.assert_close(found.float(), rounded @ matrix.dequantize(torch.float32).T + 1, rtol=2**-8, atol=2**-8)
    assert (rounded - x.float()).norm() < 0.04 * x.float().norm()
    assert ScaledLinear(matrix, None, product)(x[:0]).shape == (0, 5)


def test_a_row_with_nan_leaves_the_others_alone() -> None:
    matrix, _ = random_matrix(5, 48)
    linear = ScaledLinear(matrix, None, product)
    x = torch.randn(3, 48)
    clean = linear(x)
    x[1] = torch.nan
    dirty = linear(x)
    assert dirty[1].isnan().all()
    assert dirty[[0, 2]].equal(clean[[0, 2]])


def test_a_cpu_dequantizes() -> None:
    assert isinstance(make_linear(random_matrix(16, 32)[0]), QuantizedLinear)


def matrix_in_blocks(*shape: int, block: tuple[int, int]) -> Fp8Matrix:
    generator = torch.Generator().manual_seed(len(shape))
    codes = (torch.randn(shape, generator=generator) * 50).to(torch.float8_e4m3fn)
    *more, rows, inputs = shape
    scales = torch.rand(*more, -(-rows // block[0]), -(-inputs // block[1]), generator=generator)
    return Fp8Matrix(codes, scales, block)


@pytest.mark.parametrize("block", [(4, 16), (5, 48), (128, 128), (3, 20), (1, 1)])
def test_blocks_dequantize_as_the_manifest_says(block: tuple[int, int]) -> None:
    matrix = matrix_in_blocks(5, 48, block=block)
    expected = [
        [matrix.codes[i, j].item() * matrix.scales[i // block[0], j // block[1]].item() for j in range(48)]
        for i in range(5)
    ]
    values = matrix.dequantize(torch.float32)
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-6, atol=0)
    indices = torch.tensor([4, 0, 4])
    assert matrix.rows(indices, torch.float32).equal(values[indices])
    assert isinstance(make_linear(matrix), QuantizedLinear)
    x = torch.randn(3, 48)
    assert make_linear(matrix)(x).equal(x @ values.T)


@given(st.data())
def test_a_cut_is_of_the_elements_wherever_it_goes(data: st.DataObject) -> None:
    """Of rows and of inputs, of one matrix and of experts, with scales of rows and of blocks."""
    sizes = st.integers(1, 12)
    shape = (data.draw(sizes), data.draw(sizes), data.draw(sizes))[data.draw(st.integers(0, 1)) :]
    block = data.draw(st.none() | st.tuples(sizes, sizes))
    if block is None:
        matrix = Fp8Matrix(torch.randn(shape).to(torch.float8_e4m3fn), torch.rand(shape[:-1]))
    else:
        matrix = matrix_in_blocks(*shape, block=block)
    axis = data.draw(st.sampled_from((-2, -1)))
    places = sorted(data.draw(st.sets(st.integers(0, shape[axis]), min_size=2)) if shape[axis] > 1 else {0, 1})
    spans = list(zip(places[::2], places[1::2], strict=False))
    kept = torch.cat([torch.arange(begin, end) for begin, end in spans])
    cut = matrix.cut(axis, spans)
    assert cut.dequantize(torch.float32).equal(matrix.dequantize(torch.float32).index_select(axis, kept))
    assert (cut.block is None) == (block is None)


def test_shares_of_whole_blocks_have_blocks_of_the_same_size() -> None:
    matrix = matrix_in_blocks(96, 80, block=(32, 32))
    assert matrix.cut(-2, [(32, 64), (64, 96)]).block == (32, 32)
    assert matrix.cut(-1, [(64, 80)]).block == (32, 32)
    assert matrix.cut(-1, [(0, 48)]).block == (32, 16)
