from __future__ import annotations

import pytest
import torch

from trierarch.python_backend.executors.torch.linear import Linear, OneDnnLinear, PlainLinear, make_linear

needs_onednn = pytest.mark.skipif(
    not isinstance(make_linear(torch.zeros(1, 1, dtype=torch.bfloat16)), OneDnnLinear),
    reason="this CPU has no bfloat16 kernels",
)


@needs_onednn
@pytest.mark.parametrize("num_rows", [1, 2, 7, 32, 130])
@pytest.mark.parametrize("out_features, in_features", [(96, 64), (1001, 33)])
@pytest.mark.parametrize("has_bias", [False, True])
@torch.inference_mode()
def test_packed_weights_give_the_plain_result(
    num_rows: int, out_features: int, in_features: int, has_bias: bool
) -> None:
    torch.manual_seed(num_rows)
    weight = torch.randn(out_features, in_features, dtype=torch.bfloat16)
    bias = torch.randn(out_features, dtype=torch.bfloat16) if has_bias else None
    x = torch.randn(num_rows, in_features, dtype=torch.bfloat16)
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    plain, packed = PlainLinear(weight, bias)(x), OneDnnLinear(weight, bias)(x)
    assert packed.dtype is torch.bfloat16
    # Both round one float32 sum to bfloat16: neither may be further from the truth than that.
    torch.testing.assert_close(packed, exact.bfloat16(), rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(packed, plain, rtol=2**-7, atol=2**-7)


@needs_onednn
@torch.inference_mode()
def test_a_row_with_nan_leaves_the_others_alone() -> None:
    linear = make_linear(torch.randn(64, 64, dtype=torch.bfloat16))
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    clean = linear(x)
    x[2] = torch.nan
    dirty = linear(x)
    assert dirty[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(dirty[others], clean[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_are_computed_plainly(dtype: torch.dtype) -> None:
    linear: Linear = make_linear(torch.ones(3, 2, dtype=dtype), torch.ones(3, dtype=dtype))
    assert isinstance(linear, PlainLinear)
    assert linear(torch.tensor([[1.0, 2.0]], dtype=dtype)).tolist() == [[4.0, 4.0, 4.0]]
