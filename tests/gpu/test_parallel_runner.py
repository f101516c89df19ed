"""Two GPUs that share each layer, over NCCL: they draw what one draws, and a rank that is lost is not waited for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from support.stepping import Stepper
from support.threaded_ranks import split
from trierarch.builder.manifest import Layer, Moe
from trierarch.python_backend.executors.parallel.runner import ParallelRunner
from trierarch.python_backend.executors.runner import RunnerLost
from trierarch.python_backend.executors.torch.runner import TorchRunner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices")]

PROMPTS = [[7], [3, 4, 5, 6, 7], list(range(2, 40))]
MOE = Moe(num_experts=4, experts_per_token=2, intermediate_size=16, normalize_top_k=True)


@pytest.mark.parametrize("places, stages", [(2, 1), (1, 2)])
def test_draws_what_one_gpu_draws(tmp_path: Path, places: int, stages: int) -> None:
    architecture = tiny_architecture(layers=(Layer(is_moe=True), Layer(window=5)), moe=MOE, qk_norm=True)
    manifest = tiny_manifest(architecture)
    write_weights(tmp_path, random_weights(architecture))
    alone = Stepper.open(manifest, TorchRunner(tmp_path, manifest, torch.device("cuda")), max_num_tokens=16)
    runner = ParallelRunner(tmp_path, split(manifest, places, stages))
    together = Stepper.open(manifest, runner, max_num_tokens=16)
    assert together.generate(PROMPTS, max_tokens=12) == alone.generate(PROMPTS, max_tokens=12)
    runner.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_is_not_waited_for(tmp_path: Path, how: signal.Signals) -> None:
    architecture = tiny_architecture()
    manifest = tiny_manifest(architecture)
    write_weights(tmp_path, random_weights(architecture))
    runner = ParallelRunner(tmp_path, split(manifest, 2), stall_seconds=5.0)
    stepper = Stepper.open(manifest, runner)
    stepper.generate(PROMPTS, max_tokens=2)
    stepper.add(PROMPTS[0])
    os.kill(runner.pids[0], how)
    with pytest.raises(RunnerLost):
        stepper.finish()
    runner.close()
