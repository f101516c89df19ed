"""Static decode steps over the kernels: padding is neither read nor left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.graphs import StaticRunner
from support.random_engine import tiny_architecture, tiny_manifest
from support.stepping import Stepper
from trierarch.builder.manifest import KvType
from trierarch.python_backend.executors.torch.captured_step import ReplayedStep
from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators


@pytest.mark.parametrize("kv_type", [KvType.FLOAT32, KvType.FP8])
def test_replayed_steps_draw_what_eager_ones_draw(tmp_path: Path, kv_type: KvType) -> None:
    manifest = tiny_manifest(tiny_architecture(), kv_dtype=kv_type)
    attention = RaggedAttention(group=2, num_processors=16, min_keys_per_split=4)
    operators = Operators(attention, LoopedAdapters(), attention)
    drawn = []
    for its, record in ((Operators.eager(), None), (operators, None), (operators, ReplayedStep)):
        runner = StaticRunner.open(tmp_path, manifest, its, torch.device("cpu"), record)
        drawn.append(Stepper.open(manifest, runner).generate([[1, 2, 3], [4], [5, 6]], max_tokens=6))
    assert drawn[0] == drawn[1] == drawn[2]
    assert runner.graphs is not None
    assert runner.graphs.num_recorded >= 1
    assert not runner.kv.array.view(torch.uint8)[:, :, runner.kv.padding_block].any()
