"""Static decode steps over the kernels: padding is neither read nor left behind."""

from __future__ import annotations

from pathlib import Path

import torch

from support.graphs import StaticRunner
from support.random_engine import tiny_architecture, tiny_manifest
from support.stepping import Stepper
from trierarch.python_backend.executors.torch.captured_step import ReplayedStep
from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators


def test_replayed_steps_draw_what_eager_ones_draw(tmp_path: Path) -> None:
    manifest = tiny_manifest(tiny_architecture())
    attention = RaggedAttention(group=2, num_processors=16, min_keys_per_split=4)
    operators = Operators(attention, LoopedAdapters(), attention)
    drawn = []
    for record in (None, ReplayedStep):
        runner = StaticRunner.open(tmp_path, manifest, operators, torch.device("cpu"), record)
        drawn.append(Stepper.open(manifest, runner).generate([[1, 2, 3], [4], [5, 6]], max_tokens=6))
    assert drawn[0] == drawn[1]
    assert runner.graphs is not None
    assert runner.graphs.num_recorded >= 1
    assert not runner.kv.array[:, :, runner.kv.padding_block].any()
