from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trierarch.python_backend.executors.torch.row_codes import MAX_CODES, quantize_rows

ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 20)),
    elements=st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-60),
)
FP8 = torch.float8_e4m3fn


@given(ROWS)
def test_an_int8_element_is_off_by_at_most_half_a_step(rows: npt.NDArray[np.float32]) -> None:
    exact = torch.from_numpy(rows)
    codes, scales = quantize_rows(exact, torch.int8)
    assert codes.dtype == torch.int8
    error = (codes * scales[:, None] - exact).abs().amax(1)
    largest = exact.abs().amax(1)
    assert (error <= (0.5 + 1e-4) * largest / 127).all()
    assert (codes.abs().amax(1) == 127 * (largest > 0)).all()


@given(ROWS)
def test_an_fp8_element_keeps_three_bits_of_its_fraction(rows: npt.NDArray[np.float32]) -> None:
    exact = torch.from_numpy(rows)
    codes, scales = quantize_rows(exact, FP8)
    assert codes.dtype == FP8
    error = (codes.float() * scales[:, None] - exact).abs()
    # Half a step of a number of 4 bits, or of the smallest numbers, which are 2 ** -9 apart.
    assert (error <= torch.maximum(exact.abs() * 2**-4, scales[:, None] * 2**-10) * 1.001).all()
    assert (codes.float().abs().amax(1) == 448 * (exact.abs().amax(1) > 0)).all()


@pytest.mark.parametrize("dtype", MAX_CODES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_stays_so_and_harms_no_other(bad: float, dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, 2.0, -4.0], [1.0, bad, 3.0]])
    codes, scales = quantize_rows(rows, dtype)
    elements = codes.float() * scales[:, None]
    torch.testing.assert_close(elements[0], rows[0], atol=4 / 254, rtol=0)
    assert not elements[1].isfinite().any()
