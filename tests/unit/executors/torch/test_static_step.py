"""Static decode steps, replayed on the CPU: bit for bit what the same steps are without padding and without graphs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional

from support.decode_steps import Shape, random_plan
from support.graphs import StaticRunner
from support.random_engine import tiny_architecture, tiny_manifest
from support.stepping import Stepper
from trierarch.builder.manifest import EngineManifest, KvType, Layer
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.torch import graphed_model
from trierarch.python_backend.executors.torch.attention import EagerAttention
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.captured_step import ReplayedStep
from trierarch.python_backend.executors.torch.gathered_attention import GatheredAttention
from trierarch.python_backend.executors.torch.linear import PlainLinear
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.static_step import (
    StaticStep,
    StepLayout,
    StepSize,
    size_of,
)

CPU = torch.device("cpu")
GATHERED = Operators(GatheredAttention(16), LoopedAdapters(), GatheredAttention(16))
"""Sixteen blocks of four tokens hold the longest sequence."""
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcaps and norms": {"attention_softcap": 5.0, "qk_norm": True, "post_norms": True, "qkv_bias": True},
    "windows alone": {"layers": (Layer(window=3), Layer(window=7))},
}


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randint(50, (1 + 5 * index % 23,), generator=generator).tolist() for index in range(count)]


def run(
    folder: Path, manifest: EngineManifest, record: Any, operators: Operators = GATHERED, count: int = 5
) -> tuple[StaticRunner, list[list[int]]]:
    runner = StaticRunner.open(folder, manifest, operators, CPU, record, taps=(1,))
    return runner, Stepper.open(manifest, runner).generate(prompts(count), max_tokens=14)


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (1, 1),
        (2, 2),
        (3, 4),
        (5, 8),
        (8, 8),
        (9, 16),
        (17, 24),
        (120, 120),
        (128, 128),
        (129, 144),
        (257, 288),
        (1000, 1024),
    ],
)
def test_sizes(count: int, size: int) -> None:
    assert size_of(count) == size


def test_no_size_is_padded_by_more_than_a_half_or_seven() -> None:
    for count in range(1, 2000):
        assert count <= size_of(count) <= max(count + 7, 1.15 * count)
        assert size_of(size_of(count)) == size_of(count)


@pytest.mark.parametrize(
    ("drafts", "size"),
    [
        ([0] * 9, StepSize(16, 1)),
        ([2, 0, 2], StepSize(4, 4)),
        ([16, 0], StepSize(2, 17)),  # a token and as many drafts as there may be
        ([17], None),
        ([15] + [0] * 7, None),  # 128 rows for 23 tokens
        ([15] + [7] * 7, StepSize(8, 16)),
        ([3] + [0] * 15, StepSize(16, 4)),  # so few rows are cheap
    ],
)
def test_steps_are_padded_as_far_as_it_is_cheap(drafts: list[int], size: StepSize | None) -> None:
    layout = StepLayout(frozenset({None}), BlockShape(4, 2, 64), torch.float32, 16, 17, GatheredAttention(16), None)
    (item, *_) = random_plan(Shape((1, 1)), seed=0).scheduled
    assert layout.size([replace(item, draft_token_ids=(0,) * count) for count in drafts]) == size


def test_adapters_that_cannot_be_recorded_run_eagerly() -> None:
    layout = StepLayout(frozenset({None}), BlockShape(4, 2, 64), torch.float32, 16, 1, GatheredAttention(16), None)
    items = random_plan(Shape((1, 1)), seed=0).scheduled
    items[0].sequence.adapter = ActiveAdapter("", 1, mock.Mock())
    assert layout.size(items) is None


@pytest.fixture
def row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products whose rows do not depend on how many there are, as a CPU's last bits otherwise do."""

    def multiply(linear: PlainLinear, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([functional.linear(row[None], linear._weight, linear._bias) for row in x])

    monkeypatch.setattr(PlainLinear, "__call__", multiply)


@pytest.mark.parametrize(
    ("flags", "kv_type"),
    [*((flags, KvType.FLOAT32) for flags in FLAGS.values()), ({}, KvType.INT8), ({}, KvType.FP8)],
    ids=[*FLAGS, "int8", "fp8"],
)
def test_a_replayed_step_is_the_step_bit_for_bit(
    tmp_path: Path, flags: dict[str, Any], kv_type: KvType, row_by_row: None
) -> None:
    """Five sequences in a step of eight, then four, two and one, beside steps of prompts that run eagerly."""
    manifest = tiny_manifest(tiny_architecture(**flags), kv_dtype=kv_type)
    eager, expected = run(tmp_path, manifest, None)
    static, found = run(tmp_path, manifest, ReplayedStep)
    assert found == expected
    assert static.graphs is not None
    assert static.graphs.num_recorded >= 1
    assert len(static.steps) == len(eager.steps)
    for mine, theirs in zip(static.hidden(), eager.hidden(), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(mine[sequence].equal(theirs[sequence]) for sequence in mine)
    assert all(step.tapped is not None and len(step.tapped) == len(step.hidden) for step in static.steps)
    assert static.kv.array.view(torch.uint8).equal(eager.kv.array.view(torch.uint8))
    assert not static.kv.array.view(torch.uint8)[:, :, static.kv.padding_block].any()


def test_gathered_attention_draws_what_tiles_draw(tmp_path: Path) -> None:
    manifest = tiny_manifest(tiny_architecture(attention_softcap=5.0))
    tiled = Operators(EagerAttention(), LoopedAdapters())
    assert run(tmp_path, manifest, ReplayedStep)[1] == run(tmp_path, manifest, None, tiled)[1]


@pytest.mark.parametrize("rightness", ["right", "wrong", "mixed"])
def test_drafts_are_static_too(tmp_path: Path, rightness: str) -> None:
    """Drafts that are right, wrong, and right in part, and of any lengths in a step: the answers stay the same."""
    manifest = tiny_manifest(tiny_architecture())
    _, expected = run(tmp_path, manifest, None)
    for is_ragged in (False, True):
        runner = StaticRunner.open(tmp_path, manifest, GATHERED, CPU)
        stepper = Stepper.open(manifest, runner, enable_prefix_caching=False)
        stepper.answers, stepper.rightness = dict(enumerate(expected)), rightness
        if is_ragged:
            stepper.propose = lambda plan, stepper=stepper: {
                one: draft[: one % 5] for one, draft in stepper.known_drafts(plan).items()
            }
        assert stepper.generate(prompts(5), max_tokens=14) == expected
        assert runner.graphs is not None
        assert max(len(step.hidden) // len(step.items) for step in runner.steps[1:]) == 5  # four drafts behind a token
        assert runner.graphs.num_recorded >= 2
        assert not runner.kv.array[:, :, runner.kv.padding_block].any()


def test_of_too_many_sizes_the_rest_runs_eagerly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tiny_manifest(tiny_architecture())
    expected = run(tmp_path, manifest, None)[1]
    monkeypatch.setattr(graphed_model, "MAX_GRAPHS", 0)
    runner, found = run(tmp_path, manifest, ReplayedStep)
    assert found == expected
    assert runner.graphs is not None
    assert runner.graphs.num_recorded == 0


def test_what_cannot_be_recorded_runs_eagerly_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def record(step: StaticStep, pool: Any) -> ReplayedStep:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    manifest = tiny_manifest(tiny_architecture())
    expected = run(tmp_path, manifest, None)[1]
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path, manifest, record)[1] == expected
    (message,) = caplog.messages
    assert message == (
        "decode steps run eagerly: one of 8 could not be captured (operation not permitted when stream is capturing)"
    )
