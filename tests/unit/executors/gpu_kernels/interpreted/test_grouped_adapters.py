"""Rows of adapters of many ranks in one launch, against adapter after adapter."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.grouped_adapters import (
    adapted_manifest,
    adapters,
    check_embeddings,
    check_linears,
    owned_rows,
)
from trierarch.builder.manifest import DType, EngineManifest, Lora
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.torch.adapted_rows import rows_of
from trierarch.python_backend.executors.torch.kernels import grouped_adapters
from trierarch.python_backend.executors.torch.kernels.grouped_adapters import GroupedAdapters
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters

CPU = torch.device("cpu")


def grouped(manifest: EngineManifest) -> GroupedAdapters:
    assert manifest.lora is not None
    return GroupedAdapters(manifest.architecture, manifest.lora, CPU)


@given(seed=st.integers(0, 1000), order=st.permutations(range(4)), count=st.integers(1, 4))
@settings(max_examples=2, deadline=None)
def test_equals_adapter_after_adapter(seed: int, order: list[int], count: int) -> None:
    manifest = adapted_manifest()
    members = adapters(manifest, CPU)
    owned = owned_rows([members[number] for number in order[:count]], seed)
    if owned:
        backend = grouped(manifest)
        check_linears(manifest, backend, LoopedAdapters(), owned, 1e-5)
        check_embeddings(manifest, backend, LoopedAdapters(), owned, 1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(DType.BFLOAT16, 0.05), (DType.FLOAT16, 0.006)])
def test_half_precision_is_near_the_reference(dtype: DType, tolerance: float) -> None:
    manifest = adapted_manifest(dtype)
    owned = owned_rows(adapters(manifest, CPU), seed=1)
    check_linears(manifest, grouped(manifest), LoopedAdapters(), owned, tolerance, ("qkv", "lm_head"))
    check_embeddings(manifest, grouped(manifest), LoopedAdapters(), owned, tolerance)


def test_a_slot_gets_another_adapter_between_steps() -> None:
    """And one that its table was not made for, as a draft model's may."""
    manifest = adapted_manifest()
    backend, members = grouped(manifest), adapters(manifest, CPU)
    for order in ((0, 1), (1, 0), (3, 2)):
        owned = owned_rows([members[number] for number in order], seed=2)
        check_linears(manifest, backend, LoopedAdapters(), owned, 1e-5, ("o",))
    beyond = [type(one)(one.numbers, one.slot + 6, one.owner) for one in owned]
    check_linears(manifest, backend, LoopedAdapters(), beyond, 1e-5, ("o",))


def test_long_inputs_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_adapters, "_INPUTS_PER_SPLIT", 16)  # one share is a block of 64, some are empty
    manifest = adapted_manifest(hidden_size=136)
    owned = owned_rows(adapters(manifest, CPU), seed=3)
    check_linears(manifest, grouped(manifest), LoopedAdapters(), owned, 1e-5, ("qkv",))


def test_steps_of_the_base_model_launch_nothing() -> None:
    assert grouped(adapted_manifest()).adapt([]) is None
    assert grouped(adapted_manifest()).adapt_static([], 8, CPU) is None


@given(num_rows=st.integers(1, 300), max_adapters=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_static_steps_of_any_mix_have_the_constants_of_one_that_was_foreseen(
    num_rows: int, max_adapters: int, seed: int
) -> None:
    manifest = adapted_manifest()
    backend = GroupedAdapters(manifest.architecture, Lora(max_rank=20, max_adapters=max_adapters), CPU)
    (member, *_) = adapters(manifest, CPU)

    def constants(slots: list[int]) -> tuple[int, ...]:
        owned = rows_of([ActiveAdapter("", slot, member) if slot else None for slot in slots])
        rows = backend.adapt_static(owned, num_rows, CPU)
        assert rows is not None
        return rows.constants

    foreseen = backend.mixes(num_rows)
    assert all(len(slots) <= num_rows for slots in foreseen)
    assert len({constants(slots) for slots in foreseen}) == len(foreseen)
    rng = random.Random(seed)
    slots = [1, *(rng.randint(0, rng.randint(1, max_adapters)) for _ in range(num_rows - 1))]
    assert constants(slots) in {constants(slots) for slots in foreseen}
