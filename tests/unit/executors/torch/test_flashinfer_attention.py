"""Attention by FlashInfer, over a stand-in that follows what is recorded of it, against one query and one head at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.flashinfer_stand_in import NUM_PROCESSORS, VERSIONS, Wrapper, wrapper_of
from support.graphs import StaticRunner
from support.ragged_attention import RaggedCase
from support.random_engine import tiny_architecture, tiny_manifest
from support.scheduling import make_request
from support.stepping import Stepper
from trierarch.builder.manifest import DType, KvType
from trierarch.python_backend.executors.torch import flashinfer_attention
from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.attention_trial import disordered_plan
from trierarch.python_backend.executors.torch.flashinfer_attention import (
    FlashInferAttention,
    PageTables,
    workspace_bytes,
)
from trierarch.python_backend.executors.torch.flashinfer_library import RELEASES
from trierarch.python_backend.executors.torch.input_batch import InputBatch, group_of
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.scheduling.plan import ScheduledSequence
from trierarch.python_backend.sequence import Sequence

CPU = torch.device("cpu")
NEWEST = wrapper_of(VERSIONS[-1])
CASES = st.builds(
    RaggedCase,
    seed=st.integers(0, 1000),
    num_kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3, 4]),
    head_dim=st.just(64),
    block_size=st.sampled_from([1, 3, 4, 16]),
    window=st.sampled_from([None, 1, 5, 32]),
    softcap=st.sampled_from([None, 2.0]),
    dtype=st.just(torch.float16),
    kv_type=st.just(KvType.FLOAT16),
    max_sequences=st.just(4),
    max_length=st.sampled_from([16, 50]),
)


def backend_of(case: RaggedCase, wrapper: type[Wrapper] = NEWEST) -> FlashInferAttention:
    shape = AttentionShape(case.num_kv_heads, 0.7, case.softcap)
    return FlashInferAttention(wrapper, "", case.num_heads, case.head_dim, shape, CPU, NUM_PROCESSORS)


@given(case=CASES, version=st.sampled_from(VERSIONS))
@settings(max_examples=12, deadline=None)
def test_equals_the_reference_and_reads_no_slot_that_is_nobodys(case: RaggedCase, version: str) -> None:
    found, expected = case.attend(backend_of(case, wrapper_of(version)), CPU, poison=math.nan)
    torch.testing.assert_close(found.float(), expected, rtol=0.004, atol=0.004)


def test_tables_by_hand() -> None:
    """Pages of four: two sequences decode with 4 and 9 keys, a third begins with three."""

    def scheduled(start: int, num_tokens: int, blocks: list[int]) -> ScheduledSequence:
        sequence = Sequence(0, make_request("", (0,)), 0, [0] * (start + num_tokens))
        sequence.block_table = blocks
        return ScheduledSequence(sequence, start, num_tokens)

    shape = BlockShape(4, 1, padding_block=99)
    decoding = group_of([scheduled(3, 1, [7]), scheduled(8, 1, [5, 2, 8])], 0, 1, shape)
    beginning = group_of([scheduled(0, 3, [6])], 2, 3, shape)
    tables = PageTables.of([decoding, beginning], page_size=4)
    assert tables.first_queries.tolist() == [0, 1, 2, 5]
    assert tables.first_pages.tolist() == [0, 1, 4, 5]
    assert tables.page_ids.tolist() == [7, 5, 2, 8, 6]
    assert tables.last_page_lengths.tolist() == [4, 1, 3]


def test_bfloat16() -> None:
    case = RaggedCase(2, head_dim=128, dtype=torch.bfloat16, kv_type=KvType.BFLOAT16, max_sequences=3, max_length=24)
    found, expected = case.attend(backend_of(case), CPU, poison=math.nan)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


def test_a_step_is_planned_once_for_each_window_and_only_the_last_one_is_computed() -> None:
    case = RaggedCase(3, head_dim=64, dtype=torch.float16, kv_type=KvType.FLOAT16)
    wrapper = wrapper_of(VERSIONS[-1])  # whose plans nobody else counted
    backend = backend_of(case, wrapper)
    layer = case.arrays(CPU).layers[0]
    blocks = BlockShape(case.block_size, case.num_kv_heads, case.num_blocks)

    def step(*windows: int | None) -> InputBatch:
        return InputBatch.build(case.plan(), windows, blocks, case.dtype, CPU, backend)

    def attend(batch: InputBatch, window: int | None) -> None:
        queries = torch.zeros(batch.num_tokens, case.num_heads, 64, dtype=case.dtype)
        batch.attention[window](queries, layer, AttentionShape(case.num_kv_heads, 0.7, None))

    first = step(None, 3)
    for window in (None, 3, None):  # layers
        attend(first, window)
    assert wrapper.plans == 2
    attend(step(3), 3)
    assert wrapper.plans == 3
    with pytest.raises(AssertionError, match="another step was planned since"):
        attend(first, None)


def test_no_plan_is_written_before_the_last_one_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step in which nothing is drawn ends before the device has begun it."""
    events: list[str] = []

    class Copied:
        def synchronize(self) -> None:
            events.append("copied")

    class Told(Wrapper):
        version = VERSIONS[-1]

        def plan(self, *args: Any, **kwargs: Any) -> None:
            events.append("planned")
            super().plan(*args, **kwargs)

    monkeypatch.setattr(flashinfer_attention, "copied", lambda device: Copied())
    case = RaggedCase(3, head_dim=64, dtype=torch.float16, kv_type=KvType.FLOAT16)
    backend = backend_of(case, Told)
    for _ in range(3):
        case.attend(backend, CPU)
    assert events == ["planned", "copied", "planned", "copied", "planned"]


def test_a_model_computes_prompts_in_pieces_by_it(tmp_path: Path) -> None:
    """Several in a step; a window in one of two layers. What is drawn, which rounding may change, changes no step."""
    architecture = tiny_architecture(head_dim=64, attention_softcap=20.0)
    manifest = tiny_manifest(architecture, DType.FLOAT16)
    shape = AttentionShape(architecture.num_kv_heads, architecture.attention_scale, 20.0)
    attention = FlashInferAttention(NEWEST, "", architecture.num_heads, 64, shape, CPU, NUM_PROCESSORS)
    computed = []
    for operators in (Operators.eager(), Operators(attention, LoopedAdapters())):
        runner = StaticRunner.open(tmp_path, manifest, operators, CPU, record=None)
        prompts = [[3], [9, 8, 7, 6, 5], list(range(2, 23))]
        Stepper.open(manifest, runner, max_num_tokens=9).generate(prompts, max_tokens=1)
        computed.append(runner.hidden())
    assert len(computed[0]) == len(computed[1]) > 2
    for mine, theirs in zip(*computed, strict=True):
        assert mine.keys() == theirs.keys()
        for sequence, hidden in mine.items():
            torch.testing.assert_close(hidden, theirs[sequence], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("group, head_dim", [(1, 64), (4, 128), (8, 128), (16, 64), (8, 256)])
def test_the_workspace_holds_what_the_releases_allocate(group: int, head_dim: int) -> None:
    """The stand-in asks for what a plan of a long prompt allocates, on a device with 132 processors."""
    backend = FlashInferAttention(NEWEST, "", group, head_dim, AttentionShape(1, 0.7, None), CPU, NUM_PROCESSORS)
    prompt = disordered_plan([(100, 0)], block_size=16)
    InputBatch.build(prompt, {None}, BlockShape(16, 1, 7), torch.float16, CPU, backend)


def test_the_workspace_is_as_recommended_at_least() -> None:
    assert workspace_bytes(group=1, head_dim=64, num_processors=8) == 128 * 2**20


def test_the_releases_that_are_known_are_those_that_are_recorded() -> None:
    assert {".".join(version.split(".")[:2]) for version in VERSIONS} == set(RELEASES)
