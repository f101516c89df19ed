"""All experts in two launches, against expert after expert."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from support.decode_steps import Shape, check_step, random_plan
from support.graphs import StaticRunner
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.manifest import Activation, Layer, Moe
from trierarch.python_backend.executors.torch.gate import EagerGate
from trierarch.python_backend.executors.torch.kernels.fused_layers import FusedLayers
from trierarch.python_backend.executors.torch.kernels.grouped_experts import GroupedExperts, PairGroups
from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.moe import LoopedExperts
from trierarch.python_backend.executors.torch.operators import Operators

CPU = torch.device("cpu")


@given(
    num_rows=st.sampled_from([1, 3, 40]),
    num_experts=st.sampled_from([2, 5, 9]),
    hidden=st.sampled_from([8, 70]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    favour=st.floats(0, 9),
    seed=st.integers(0, 1000),
)
@settings(max_examples=8, deadline=None)
def test_equals_expert_after_expert(
    num_rows: int, num_experts: int, hidden: int, dtype: torch.dtype, favour: float, seed: int
) -> None:
    """favour: how much more the first expert is liked, so that some have no row at all."""
    generator = torch.Generator().manual_seed(seed)
    inner, num_chosen = 12, 2
    gate_up = torch.randn(num_experts, 2 * inner, hidden, generator=generator).to(dtype)
    down = torch.randn(num_experts, hidden, inner, generator=generator).to(dtype)
    scores = torch.randn(num_rows, num_experts, generator=generator)
    scores[:, 0] += favour
    weights, chosen = scores.softmax(-1).topk(num_chosen, -1)
    x = torch.randn(num_rows, hidden, generator=generator).to(dtype)
    gate = EagerGate(Activation.SILU)
    looped = [
        lambda x, one=one, other=other: functional.linear(gate(functional.linear(x, one)), other)
        for one, other in zip(gate_up, down, strict=True)
    ]
    experts = FusedLayers(CPU, num_processors=1).experts(gate_up, down, Activation.SILU)
    assert isinstance(experts, GroupedExperts)
    found, expected = experts(x, chosen, weights), LoopedExperts(looped)(x, chosen, weights)
    assert found.dtype is dtype
    tolerance = 1e-4 if dtype is torch.float32 else 0.05 * float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("num_pairs, num_experts, most", [(2, 4, 2), (64, 4, 7), (2048, 4, 35)])
def test_tiles_are_as_many_whoever_is_chosen(num_pairs: int, num_experts: int, most: int) -> None:
    for chosen in (torch.zeros(num_pairs, 1), torch.arange(num_pairs)[:, None] % num_experts):
        groups = PairGroups.of(chosen.long(), num_experts)
        assert groups.tiles.shape == (most, 3)
        used = [tuple(tile) for tile in groups.tiles.tolist() if tile[0] >= 0]
        pairs = [
            (expert, pair)
            for expert, first, end in used
            for pair in groups.order[first : min(first + groups.tile_rows, end)].tolist()
        ]
        assert sorted(pair for _, pair in pairs) == list(range(num_pairs))
        assert all(int(chosen[pair, 0]) == expert for expert, pair in pairs)


def test_steps_of_experts_are_replayed_whoever_is_chosen(tmp_path: Path) -> None:
    moe = Moe(num_experts=4, experts_per_token=2, intermediate_size=16, normalize_top_k=True)
    manifest = tiny_manifest(tiny_architecture(layers=(Layer(is_moe=True),), moe=moe))
    attention = RaggedAttention(group=2, num_processors=1, max_seq_len=64)
    operators = Operators(attention, LoopedAdapters(), attention, layers=FusedLayers(CPU, num_processors=1))
    runner = StaticRunner.open(tmp_path, manifest, operators, CPU)
    reference = StaticRunner.open(tmp_path, manifest, Operators.eager(), CPU, None)
    for seed in range(3):
        check_step(runner, reference, random_plan(Shape((5, 8)), seed), seed, 0.0)
    assert runner.graphs is not None
    assert runner.graphs.num_recorded == 1
