"""The same code on CUDA: a tiny engine draws there what it draws on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from support.stepping import Stepper
from trierarch.builder.manifest import Activation, DType, Layer, Moe
from trierarch.python_backend.executors.torch.runner import TorchRunner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MOE = Moe(num_experts=4, experts_per_token=2, intermediate_size=16, normalize_top_k=True)
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "norms and biases": {"qk_norm": True, "post_norms": True, "qkv_bias": True, "mlp_bias": True},
    "softcaps": {"attention_softcap": 5.0, "logit_softcap": 10.0, "activation": Activation.GELU_TANH},
    "experts": {"layers": (Layer(is_moe=True), Layer(window=5, rope=None)), "moe": MOE},
}


@pytest.mark.parametrize("max_num_tokens", [7, 512])
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_draws_what_the_cpu_draws(tmp_path: Path, flags: dict[str, Any], max_num_tokens: int) -> None:
    architecture = tiny_architecture(**flags)
    manifest = tiny_manifest(architecture)
    write_weights(tmp_path, random_weights(architecture))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(50, (length,), generator=generator).tolist() for length in (1, 5, 17, 40)]
    drawn = [
        Stepper.open(
            manifest, TorchRunner(tmp_path, manifest, torch.device(device)), max_num_tokens=max_num_tokens
        ).generate(prompts, max_tokens=12)
        for device in ("cpu", "cuda")
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_half_precision_runs(tmp_path: Path, dtype: DType) -> None:
    architecture = tiny_architecture()
    manifest = tiny_manifest(architecture, dtype)
    write_weights(tmp_path, random_weights(architecture, dtype))
    stepper = Stepper.open(manifest, TorchRunner(tmp_path, manifest, torch.device("cuda")))
    (drawn,) = stepper.generate([[1, 2, 3]], max_tokens=8, prompt_logprobs=1)
    assert len(drawn) == 8
