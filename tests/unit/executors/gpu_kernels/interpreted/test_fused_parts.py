"""What lies between a layer's products, in one launch each, against torch's operators one after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.coded_matrices import coded_matrix
from support.fused_layers import HeadsCase, check_gates, check_heads, check_norms
from trierarch.builder.manifest import KvType
from trierarch.python_backend.executors.torch import row_codes
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.kernels.coded_linear import FewRowsLinear
from trierarch.python_backend.executors.torch.kernels.coded_matrix import FEW_ROWS, CodedMatrix
from trierarch.python_backend.executors.torch.kernels.fused_layers import FusedLayers
from trierarch.python_backend.executors.torch.kernels.fused_parts import quantize_rows
from trierarch.python_backend.executors.torch.residual import Residual

CPU = torch.device("cpu")
FUSED = FusedLayers(CPU, num_processors=1)


@pytest.mark.parametrize("size", [1, 48, 1030])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_norms_and_gates(size: int, dtype: torch.dtype, tolerance: float) -> None:
    check_norms(FUSED, CPU, dtype, size, tolerance)
    check_gates(FUSED, CPU, dtype, size, tolerance)


@given(
    num_heads=st.sampled_from([2, 3]),
    num_kv_heads=st.sampled_from([1, 2]),
    dims=st.sampled_from([(8, 8), (12, 12), (12, 4), (16, 0)]),
    has_norm=st.booleans(),
    kv_type=st.sampled_from([KvType.FLOAT32, KvType.BFLOAT16, KvType.INT8, KvType.FP8]),
)
@settings(max_examples=12, deadline=None)
def test_heads(num_heads: int, num_kv_heads: int, dims: tuple[int, int], has_norm: bool, kv_type: KvType) -> None:
    check_heads(HeadsCase(num_heads, num_kv_heads, *dims, has_norm, kv_type), FUSED, CPU, 1e-6)


@pytest.mark.parametrize("kv_type", [KvType.BFLOAT16, KvType.FP8])
def test_heads_in_half_precision(kv_type: KvType) -> None:
    check_heads(HeadsCase(has_norm=True, kv_type=kv_type, dtype=torch.bfloat16), FUSED, CPU, 2**-6)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_rows_are_rounded_as_the_reference_rounds_them(dtype: torch.dtype) -> None:
    """Rows of nothing, of NaN and of infinity too; bit for bit."""
    x = torch.randn(7, 100, generator=torch.Generator().manual_seed(1))
    x[1], x[2, 3], x[3, 4], x[4] = 0.0, torch.nan, torch.inf, x[4] * 1e-30
    for rows in (x, x[:, ::2], x[:0]):
        codes, scales = quantize_rows(rows, dtype)
        expected_codes, expected_scales = row_codes.quantize_rows(rows, dtype)
        assert codes.float().equal(expected_codes.float())
        torch.testing.assert_close(scales, expected_scales, rtol=0, atol=0, equal_nan=True)


def test_no_row_depends_on_another() -> None:
    """Bit for bit, and beside rows of NaN."""
    x = torch.randn(6, 130, generator=torch.Generator().manual_seed(2))
    norm = FUSED.norm(torch.rand(130), 1e-6)
    clean = torch.cat([norm.of_sum(Residual(row[None], row[None]))[1] for row in x])
    x[2] = torch.nan
    dirty = norm.of_sum(Residual(x, x))[1]
    assert dirty[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert dirty[others].equal(clean[others])


def test_few_rows_of_e4m3_are_multiplied_as_many_are() -> None:
    """The same codes of activations and weights, NaN told as such; torch's own product has no CPU and is stood in for."""
    weight = coded_matrix("fp8", 20, 1072)
    assert isinstance(weight, Fp8Matrix)
    x = (
        torch.randn(FEW_ROWS, 1072, generator=torch.Generator().manual_seed(3))
        * torch.tensor([1, 1e-3, 1e3, 0])[:, None]
    )
    codes, scales = row_codes.quantize_rows(x, torch.float8_e4m3fn)
    expected = (codes.float() * scales[:, None]) @ weight.dequantize(torch.float32).T + 1

    def many(rows: torch.Tensor) -> torch.Tensor:
        return rows.new_full((len(rows), 20), 7)

    for num_processors in (1, 64):
        linear = FewRowsLinear(CodedMatrix.of(weight, num_processors, has_e4m3=True), torch.ones(20), many)
        torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=1e-5)
        assert linear(x[1:2]).equal(linear(x)[1:2])
        assert linear(torch.cat((x, x))).eq(7).all()
    x[2, 1070] = torch.nan
    dirty = linear(x)
    assert dirty[2].isnan().all()
    assert dirty[:2].isfinite().all()
