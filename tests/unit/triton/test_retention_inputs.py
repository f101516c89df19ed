"""What clients say of their cached blocks: the contract's tensors, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import RetainedRange, Retention
from trierarch.python_backend.triton.inputs import Inputs
from trierarch.python_backend.triton.request_parser import Envelope, RequestParser
from trierarch.python_backend.triton.retention_inputs import read_retention


def arrays(**values: int | list[int]) -> dict[str, Any]:
    return {f"retention_{name}": np.array([value], np.int32).reshape(1, -1) for name, value in values.items()}


def test_ranges_and_what_comes_behind_them() -> None:
    sent = arrays(
        token_range_starts=[40, 0],
        token_range_ends=[-1, 40],
        token_range_priorities=[10, 100],
        token_range_durations_ms=[-1, 3000],
        decode_priority=5,
        decode_duration_ms=-1,
    )
    assert read_retention(Inputs(sent)) == Retention(
        ranges=(RetainedRange(0, 40, 100, 3000), RetainedRange(40, None, 10, None)), decode_priority=5
    )


def test_what_is_not_said() -> None:
    assert read_retention(Inputs({})) is None
    plain = arrays(token_range_starts=[0], token_range_ends=[9], token_range_priorities=[1])
    assert read_retention(Inputs(plain)) == Retention(ranges=(RetainedRange(0, 9, 1),))
    assert read_retention(Inputs(arrays(decode_duration_ms=70))) == Retention(decode_duration_ms=70)


RANGE: dict[str, Any] = {"token_range_starts": [0], "token_range_ends": [4], "token_range_priorities": [50]}


@pytest.mark.parametrize(
    "change, name",
    [
        ({"token_range_starts": [-1]}, "retention_token_range_starts"),
        ({"token_range_ends": [0]}, "retention_token_range_ends"),
        ({"token_range_ends": [4, 5]}, "retention_token_range_ends"),
        ({"token_range_priorities": [101]}, "retention_token_range_priorities"),
        ({"token_range_priorities": []}, "retention_token_range_priorities"),
        ({"token_range_durations_ms": [0]}, "retention_token_range_durations_ms"),
        ({"token_range_durations_ms": [1, 2]}, "retention_token_range_durations_ms"),
        ({"decode_priority": -1}, "retention_decode_priority"),
        ({"decode_duration_ms": 0}, "retention_decode_duration_ms"),
        (
            {"token_range_starts": [0, 3], "token_range_ends": [4, 9], "token_range_priorities": [1, 2]},
            "retention_token_range_starts",
        ),
        (
            {"token_range_starts": [0, 3], "token_range_ends": [-1, 9], "token_range_priorities": [1, 2]},
            "retention_token_range_starts",
        ),
    ],
)
def test_what_is_no_wish_is_refused_under_its_tensors_name(change: dict[str, Any], name: str) -> None:
    parser = RequestParser(vocab_size=97, is_decoupled=True, exclude_input_in_output=False)
    request = {"input_ids": np.array([[1, 2]], np.int32), "request_output_len": np.array([[4]], np.int32)}
    envelope = Envelope(request_id="r", requested=frozenset())
    (row,) = parser.parse({**request, **arrays(**RANGE)}, envelope)
    assert row.request.retention is not None
    with pytest.raises(InvalidRequest) as refusal:
        parser.parse({**request, **arrays(**{**RANGE, **change})}, envelope)
    assert refusal.value.field == name
