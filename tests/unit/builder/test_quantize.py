"""Rounding to codes, against the slow and obvious and against what must hold of any numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.manifest import GROUP_SIZE
from trierarch.builder.quantize import quantize
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix

FLOAT16_MAX = 65504.0
GROUPS = arrays(np.float32, (2, 2 * GROUP_SIZE), elements=st.floats(-60000, 60000, width=32))


def quantized(values: torch.Tensor, bits: int) -> QuantizedMatrix:
    result = quantize("w", values, bits)
    assert result.codes.dtype is (torch.int8 if bits == 8 else torch.uint8)
    assert (result.offsets is None) == (bits == 8)
    return QuantizedMatrix(result.codes, result.scales, result.offsets)


def restored(values: torch.Tensor, bits: int) -> torch.Tensor:
    return quantized(values, bits).dequantize(torch.float32)


def from_the_range(group: torch.Tensor) -> torch.Tensor:
    """int4 as the least and the greatest value say, one element at a time."""
    offset = group.min().half().item()
    scale = ((group.max() - group.min()) / 15).half().item()
    codes = [min(max(round((x - offset) / scale), 0), 15) if scale else 0 for x in group.tolist()]
    return torch.tensor([offset + scale * code for code in codes])


def distance(values: torch.Tensor, other: torch.Tensor) -> float:
    return (values.double() - other.double()).norm().item()


@given(GROUPS)
def test_int8_is_off_by_half_a_step(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    matrix = quantized(values, 8)
    step = matrix.scales.float().repeat_interleave(GROUP_SIZE, 1)
    # The step itself is rounded: 127 of them may fall short of the largest value by 127 / 2 ** 12 of one, or, where
    # float16 runs out of digits, by 127 halves of its smallest number.
    slack = 0.04 * step + 127 * 2.0**-25
    assert ((matrix.dequantize(torch.float32) - values).abs() <= step / 2 + slack).all()
    assert matrix.codes.min() >= -127


@given(GROUPS)
def test_int4_is_no_worse_than_the_range_itself(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    found = restored(values, 4)
    for group, result in zip(values.view(-1, GROUP_SIZE), found.view(-1, GROUP_SIZE), strict=True):
        rounding = GROUP_SIZE**0.5 * group.abs().max().item() * 2**-22  # of float32, in which errors are compared
        assert distance(result, group) <= distance(from_the_range(group), group) * (1 + 1e-5) + rounding


@pytest.mark.parametrize("degrees_of_freedom", [3.0, 30.0])
def test_the_search_leaves_a_sixth_less_squared_error_than_the_range(degrees_of_freedom: float) -> None:
    torch.manual_seed(1)
    values = torch.distributions.StudentT(degrees_of_freedom).sample((64, 8 * GROUP_SIZE)) * 0.02
    plain = torch.stack([from_the_range(group) for group in values.view(-1, GROUP_SIZE)]).view_as(values)
    assert distance(restored(values, 4), values) ** 2 < 5 / 6 * distance(plain, values) ** 2


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [0.0, -0.75, 1e-9, -60000.0])
def test_a_constant_group_stays_itself(bits: int, value: float) -> None:
    values = torch.full((3, GROUP_SIZE), value)
    matrix = quantized(values, bits)
    torch.testing.assert_close(matrix.dequantize(torch.float32), values, rtol=1e-3, atol=2e-8)
    if value == 0.0:
        assert not matrix.codes.any()
        assert not matrix.dequantize(torch.float32).any()


@pytest.mark.parametrize("bits, lowest, highest", [(8, -127, 127), (4, 0, 15)])
def test_numbers_that_are_codes_already_come_back(bits: int, lowest: int, highest: int) -> None:
    torch.manual_seed(2)
    codes = torch.randint(lowest, highest + 1, (7, 3 * GROUP_SIZE))
    codes[:, ::GROUP_SIZE], codes[:, 1::GROUP_SIZE] = lowest, highest
    values = codes * 0.125 - (3.0 if bits == 4 else 0.0)
    assert restored(values, bits).equal(values)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_no_row_knows_of_the_others(bits: int, dtype: torch.dtype) -> None:
    """More rows than are worked on at once, and a number of them that does not divide."""
    torch.manual_seed(3)
    values = torch.randn(301, 16 * GROUP_SIZE).to(dtype)
    whole, alone = quantize("w", values, bits), [quantize("w", row[None], bits) for row in values]
    assert whole.codes.equal(torch.cat([one.codes for one in alone]))
    assert whole.scales.equal(torch.cat([one.scales for one in alone]))
    if whole.offsets is not None:
        assert whole.offsets.equal(torch.cat([one.offsets for one in alone if one.offsets is not None]))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_the_checkpoint_s_fault(bits: int, value: float) -> None:
    values = torch.ones(2, GROUP_SIZE)
    values[1, 5] = value
    with pytest.raises(CheckpointError, match=r"model.o_proj.weight holds NaN or infinity; download"):
        quantize("model.o_proj.weight", values, bits)


@pytest.mark.parametrize("bits, largest", [(8, FLOAT16_MAX * 127), (4, FLOAT16_MAX)])
def test_values_beyond_the_scales_are_refused(bits: int, largest: float) -> None:
    values = torch.zeros(2, GROUP_SIZE)
    values[0, 0] = -largest
    assert restored(values, bits)[0, 0] == pytest.approx(-largest, rel=1e-3)
    values[0, 0] *= 1.01
    with pytest.raises(ConfigError, match=rf"quantization is int{bits}: o_proj holds .*; leave the model unquantised"):
        quantize("o_proj", values, bits)
