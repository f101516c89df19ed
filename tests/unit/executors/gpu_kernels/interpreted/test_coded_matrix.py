"""Products with codes, against the matrix written down and multiplied by torch; no row knows of another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.coded_matrices import KINDS, coded_matrix
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.kernels.coded_linear import CodedLinear
from trierarch.python_backend.executors.torch.kernels.coded_matrix import FEW_ROWS, MANY_ROWS, CodedMatrix
from trierarch.python_backend.executors.torch.linear import QuantizedLinear

MANY_PROCESSORS = 64
"""So that small matrices are shared out."""


def rows(count: int, num_inputs: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, num_inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("has_e4m3", [True, False])
@given(
    kind=st.sampled_from(KINDS),
    sizes=st.sampled_from([(5, 96), (70, 160), (17, 1056)]),
    num_rows=st.sampled_from([0, 1, FEW_ROWS, FEW_ROWS + 1, 20, MANY_ROWS, MANY_ROWS + 1]),
    num_processors=st.sampled_from([1, MANY_PROCESSORS]),
    has_bias=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_equals_the_reference(
    has_e4m3: bool, kind: str, sizes: tuple[int, int], num_rows: int, num_processors: int, has_bias: bool
) -> None:
    matrix = coded_matrix(kind, *sizes)
    bias = rows(1, sizes[0])[0] if has_bias else None
    x = rows(num_rows, sizes[1])
    found = CodedLinear(CodedMatrix.of(matrix, num_processors, has_e4m3), bias)(x)
    torch.testing.assert_close(found, QuantizedLinear(matrix, bias)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_e4m3", [True, False])
def test_the_elements_are_those_of_the_reference(kind: str, has_e4m3: bool) -> None:
    """Every code there is, subnormal numbers of E4M3 too; bit for bit."""
    matrix = coded_matrix(kind, 40, 96)
    for dtype in (torch.float32, torch.float16):
        assert CodedMatrix.of(matrix, 1, has_e4m3).elements(dtype).equal(matrix.dequantize(dtype))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near_the_reference(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    matrix = coded_matrix(kind, 20, 1056)
    linear = CodedLinear(CodedMatrix.of(matrix, MANY_PROCESSORS, has_e4m3=True), torch.ones(20, dtype=dtype))
    x = rows(MANY_ROWS + 1, 1056, dtype)
    exact = x.double() @ matrix.dequantize(torch.float64).T + 1
    for count in (1, FEW_ROWS + 1, MANY_ROWS + 1):
        found = linear(x[:count])
        assert found.dtype is dtype
        torch.testing.assert_close(found.double(), exact[:count], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_depends_on_another(kind: str) -> None:
    """Bit for bit, by itself and beside any others of the same form, and beside rows of NaN.

    Of rows that share a tile the interpreter's own product, numpy's, sums in an order that depends on the place in the tile.
    """
    linear = CodedLinear(CodedMatrix.of(coded_matrix(kind, 5, 1056), MANY_PROCESSORS, has_e4m3=True))
    x = rows(2 * FEW_ROWS + 1, 1056)
    few = torch.cat([linear(row[None]) for row in x])
    assert linear(x[:FEW_ROWS]).equal(few[:FEW_ROWS])
    assert linear(x[2:5].flip(0)).equal(few[2:5].flip(0))
    some = linear(x)
    assert linear(x[: FEW_ROWS + 1]).equal(some[: FEW_ROWS + 1])
    assert linear(torch.cat((x[:3], x[5:8])))[:3].equal(some[:3])
    x[1] = torch.nan
    for count, clean in ((FEW_ROWS, few), (len(x), some)):
        dirty = linear(x[:count])
        assert dirty[1].isnan().all()
        others = [index for index in range(count) if index != 1]
        assert dirty[others].equal(clean[others])


def test_scales_may_be_of_blocks() -> None:
    """Of 8 rows and 64 columns, the last ones of less."""
    whole = coded_matrix("fp8", 20, 160)
    scales = torch.rand(3, 3, generator=torch.Generator().manual_seed(4)) / 2000
    matrix = Fp8Matrix(whole.codes, scales, (8, 64))
    for num_inputs, is_taken in ((64, True), (32, True), (16, False)):
        assert CodedMatrix.takes(replace(matrix, block=(8, num_inputs))) is is_taken
    linear, reference = CodedLinear(CodedMatrix.of(matrix, 1, has_e4m3=True)), QuantizedLinear(matrix)
    x = rows(MANY_ROWS + 1, 160)
    for count in (1, FEW_ROWS + 1, MANY_ROWS + 1):
        torch.testing.assert_close(linear(x[:count]), reference(x[:count]), rtol=1e-5, atol=1e-5)


def test_rows_may_lie_apart() -> None:
    linear = CodedLinear(CodedMatrix.of(coded_matrix("int4", 9, 64), 1, has_e4m3=True))
    wide = rows(5, 256)
    for count in (2, 5):
        x = wide[:count, 64:128]
        assert linear(x).equal(linear(x.contiguous()))
        assert linear(wide.T[:64, :count].T).equal(linear(wide[:count, :64]))
