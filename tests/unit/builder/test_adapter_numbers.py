"""NaN and infinity in an adapter: the fast look at bits against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest

from trierarch.builder.adapter import to_floats
from trierarch.builder.adapter_check import is_finite


def test_every_bfloat16_is_judged_as_the_number_it_is() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = np.isfinite(to_floats(bits))
    assert not finite.all()
    assert [is_finite(bits[index : index + 1]) for index in range(len(bits))] == finite.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_one_bad_number_among_many_is_found(dtype: type, number: float) -> None:
    array = np.zeros((300, 7), dtype)
    assert is_finite(array)
    array[123, 4] = number
    assert not is_finite(array)
