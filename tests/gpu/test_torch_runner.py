"""The same code on CUDA: a tiny engine draws there what it draws on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from support.stepping import Stepper
from trierarch.builder.manifest import Activation, DType, KvType, Layer, Moe
from trierarch.builder.quantize_fp8 import quantize_fp8
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.linear import make_linear
from trierarch.python_backend.executors.torch.row_codes import quantize_rows
from trierarch.python_backend.executors.torch.runner import TorchRunner
from trierarch.python_backend.executors.torch.scaled_linear import ScaledLinear

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


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="no E4M3 units in this GPU"
)
@pytest.mark.parametrize("num_rows", [1, 3, 16, 130])
def test_a_gpu_multiplies_fp8_as_the_dequantised_reference_does(num_rows: int) -> None:
    generator = torch.Generator("cuda").manual_seed(num_rows)
    exact = torch.randn(96, 64, device="cuda", generator=generator)
    codes = quantize_fp8("w", exact)
    matrix = Fp8Matrix(codes.codes, codes.scales)
    linear = make_linear(matrix, torch.ones(96, dtype=torch.bfloat16, device="cuda"))
    assert isinstance(linear, ScaledLinear)
    x = torch.randn(num_rows, 64, device="cuda", generator=generator).bfloat16()
    rounded, scales = quantize_rows(x, torch.float8_e4m3fn)
    expected = (rounded.float() * scales[:, None]) @ matrix.dequantize(torch.float32).T + 1
    torch.testing.assert_close(linear(x).float(), expected, rtol=2**-7, atol=2**-5)


def test_fp8_keys_and_values_run(tmp_path: Path) -> None:
    architecture = tiny_architecture()
    write_weights(tmp_path, random_weights(architecture))
    drawn = []
    for kv_dtype in (KvType.FLOAT32, KvType.FP8):
        manifest = tiny_manifest(architecture, kv_dtype=kv_dtype)
        stepper = Stepper.open(manifest, TorchRunner(tmp_path, manifest, torch.device("cuda")))
        drawn += stepper.generate([[1, 2, 3]], max_tokens=8, prompt_logprobs=1)
    assert [len(tokens) for tokens in drawn] == [8, 8]
