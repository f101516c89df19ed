"""One ragged kernel for a step's attention, against one sequence, one head and one query at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.ragged_attention import RaggedCase
from trierarch.builder.manifest import KvType
from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention

CPU = torch.device("cpu")
CASES = st.builds(
    RaggedCase,
    seed=st.integers(0, 1000),
    num_kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3, 4]),
    head_dim=st.sampled_from([8, 12, 16]),
    block_size=st.sampled_from([3, 4, 16]),
    window=st.sampled_from([None, 1, 5, 32]),
    softcap=st.sampled_from([None, 2.0]),
    kv_type=st.sampled_from([KvType.FLOAT32, KvType.INT8]),
    max_sequences=st.just(5),
    max_length=st.sampled_from([16, 90]),
)


@given(case=CASES, shares_keys=st.booleans())
@settings(max_examples=16, deadline=None)
def test_equals_the_reference_and_reads_no_slot_that_is_nobodys(case: RaggedCase, shares_keys: bool) -> None:
    backend = RaggedAttention(case.group, num_processors=64 if shares_keys else 1, min_keys_per_split=8)
    found, expected = case.attend(backend, CPU, poison=math.nan)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 140])
def test_long_contexts_are_shared_out(window: int | None) -> None:
    """Among two programs, whose shares are more than a turn of the loop, and among more than there are turns."""
    case = RaggedCase(seed=12, max_sequences=1, max_length=400, num_kv_heads=1, window=window)
    (item,) = case.plan().scheduled
    assert (item.start > 300, item.num_tokens) == (True, 1)
    for num_processors in (2, 16):
        backend = RaggedAttention(case.group, num_processors, min_keys_per_split=1)
        found, expected = case.attend(backend, CPU, poison=math.nan)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [24, 64])
def test_more_heads_share_keys_than_a_small_tile_has_rows(group: int) -> None:
    case = RaggedCase(seed=3, num_kv_heads=1, group=group, max_sequences=2, max_length=20)
    found, expected = case.attend(RaggedAttention(group, num_processors=1), CPU)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dtype, kv_type, tolerance",
    [
        (torch.bfloat16, KvType.BFLOAT16, 0.03),
        (torch.float16, KvType.FLOAT16, 0.004),
        (torch.bfloat16, KvType.INT8, 0.03),
        (torch.float16, KvType.FLOAT32, 0.004),
    ],
)
def test_half_precision_is_near_the_reference(dtype: torch.dtype, kv_type: KvType, tolerance: float) -> None:
    case = RaggedCase(seed=2, dtype=dtype, kv_type=kv_type, max_sequences=4)
    found, expected = case.attend(RaggedAttention(case.group, num_processors=1), CPU)
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
