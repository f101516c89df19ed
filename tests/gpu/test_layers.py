"""What layers are made of by kernels of ours, on a real GPU, of real sizes, against their references."""

from __future__ import annotations

import pytest
import torch

from support.coded_matrices import KINDS, coded_matrix
from support.fused_layers import HeadsCase, check_gates, check_heads, check_norms
from trierarch.builder.manifest import KvType
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.torch.scaled_linear import ScaledLinear, can_scale

pytest.importorskip("triton")

from trierarch.python_backend.executors.torch.kernels.coded_linear import CodedLinear, FewRowsLinear
from trierarch.python_backend.executors.torch.kernels.coded_matrix import FEW_ROWS, MANY_ROWS, CodedMatrix
from trierarch.python_backend.executors.torch.kernels.fused_layers import FusedLayers
from trierarch.python_backend.executors.torch.kernels.fused_parts import quantize_rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")
needs_e4m3 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="no E4M3 units in this GPU"
)


def num_processors() -> int:
    return torch.cuda.get_device_properties(CUDA).multi_processor_count


def coded(matrix: QuantizedMatrix | Fp8Matrix, has_e4m3: bool = False) -> CodedMatrix:
    return CodedMatrix.of(matrix, num_processors(), has_e4m3)


def rows(count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(count)).to(CUDA, dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(4096, 1056), (1000, 4096)], ids=["wide", "shared out"])
def test_products_equal_the_reference_and_no_row_depends_on_another(
    sizes: tuple[int, int], kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Bit for bit within a form."""
    torch.backends.cuda.matmul.allow_tf32 = False
    matrix = coded_matrix(kind, *sizes, device=CUDA)
    linear = CodedLinear(coded(matrix), torch.ones(sizes[0], dtype=dtype, device=CUDA))
    x = rows(MANY_ROWS + 1, sizes[1], dtype)
    exact = x.double() @ matrix.dequantize(torch.float64).T + 1
    alone = torch.cat([linear(row[None]) for row in x[:FEW_ROWS]])
    for count in (1, FEW_ROWS, FEW_ROWS + 1, 16, MANY_ROWS, MANY_ROWS + 1):
        found = linear(x[:count])
        torch.testing.assert_close(found.double(), exact[:count], rtol=tolerance, atol=tolerance)
        if count <= FEW_ROWS:
            assert found.equal(alone[:count])
        elif count <= MANY_ROWS:
            assert linear(x[:count].flip(0)).equal(found.flip(0))


@needs_e4m3
def test_few_rows_of_e4m3_are_multiplied_as_many_are() -> None:
    matrix = coded_matrix("fp8", 4096, 1056, device=CUDA)
    assert isinstance(matrix, Fp8Matrix)
    assert can_scale(matrix)
    many = ScaledLinear(matrix, quantize=quantize_rows)
    x = rows(FEW_ROWS, 1056, torch.bfloat16)
    found = FewRowsLinear(coded(matrix, has_e4m3=True), None, many)(x)
    torch.testing.assert_close(found, many(x), rtol=2**-6, atol=2**-6)


@needs_e4m3
def test_bits_of_e4m3_are_what_the_gpu_makes_of_them() -> None:
    matrix = coded_matrix("fp8", 256, 1056, device=CUDA)
    elements = coded(matrix, has_e4m3=True).elements(torch.float32)
    assert elements.equal(coded(matrix).elements(torch.float32))
    assert elements.equal(matrix.dequantize(torch.float32))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2**-6)])
@pytest.mark.parametrize("size", [48, 4096, 14336])
def test_norms_and_gates_equal_the_reference(size: int, dtype: torch.dtype, tolerance: float) -> None:
    backend = FusedLayers(CUDA, num_processors())
    check_norms(backend, CUDA, dtype, size, tolerance)
    check_gates(backend, CUDA, dtype, size, tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2**-6)])
@pytest.mark.parametrize("kv_type", [KvType.BFLOAT16, KvType.INT8, pytest.param(KvType.FP8, marks=needs_e4m3)])
@pytest.mark.parametrize("has_norm", [False, True])
def test_heads_equal_the_reference(has_norm: bool, kv_type: KvType, dtype: torch.dtype, tolerance: float) -> None:
    backend = FusedLayers(CUDA, num_processors())
    check_heads(HeadsCase(32, 8, 128, 128, has_norm, kv_type, dtype, 70), backend, CUDA, tolerance)
    check_heads(HeadsCase(3, 1, 80, 32, has_norm, kv_type, dtype), backend, CUDA, tolerance)
