"""Kernels of ours on a real GPU, of real sizes, against their references."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from support.grouped_adapters import adapted_manifest, adapters, check_embeddings, check_linears, owned_rows
from support.ragged_attention import RaggedCase
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from support.stepping import Stepper
from trierarch.builder.manifest import DType, KvType
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.runner import TorchRunner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")
ATTENTIONS = {
    "float32": (RaggedCase(1, head_dim=64, block_size=16, max_length=300), 1e-4),
    "bfloat16": (
        RaggedCase(
            2, group=4, head_dim=128, block_size=16, max_length=900, dtype=torch.bfloat16, kv_type=KvType.BFLOAT16
        ),
        0.03,
    ),
    "gemma": (
        RaggedCase(
            3,
            group=2,
            head_dim=256,
            block_size=32,
            max_length=900,
            window=100,
            softcap=50.0,
            dtype=torch.bfloat16,
            kv_type=KvType.BFLOAT16,
        ),
        0.03,
    ),
    "odd heads, int8": (
        RaggedCase(4, group=7, head_dim=80, block_size=16, max_length=700, dtype=torch.float16, kv_type=KvType.INT8),
        0.004,
    ),
}


@pytest.mark.parametrize("num_processors", [1, 4096])
@pytest.mark.parametrize("case, tolerance", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention_equals_the_reference(case: RaggedCase, tolerance: float, num_processors: int) -> None:
    from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention

    backend = RaggedAttention(case.group, num_processors, min_keys_per_split=64)
    found, expected = case.attend(backend, CUDA, poison=math.nan)
    torch.testing.assert_close(found.float().cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(DType.FLOAT32, 1e-4), (DType.BFLOAT16, 0.05), (DType.FLOAT16, 0.006)])
@pytest.mark.parametrize(
    "sizes", [{}, {"hidden_size": 2048, "intermediate_size": 4096, "head_dim": 128}], ids=["odd", "large"]
)
def test_adapters_equal_the_reference(sizes: dict[str, int], dtype: DType, tolerance: float) -> None:
    from trierarch.python_backend.executors.torch.kernels.grouped_adapters import GroupedAdapters

    torch.backends.cuda.matmul.allow_tf32 = False
    manifest = adapted_manifest(dtype, **sizes)
    assert manifest.lora is not None
    backend = GroupedAdapters(manifest.architecture, manifest.lora, CUDA)
    owned = owned_rows(adapters(manifest, CUDA), seed=1)
    check_linears(manifest, backend, LoopedAdapters(), owned, tolerance)
    check_embeddings(manifest, backend, LoopedAdapters(), owned, tolerance)


def test_draws_what_torchs_operators_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = tiny_architecture(qk_norm=True)
    manifest = tiny_manifest(architecture)
    write_weights(tmp_path, random_weights(architecture))

    def draw() -> list[list[int]]:
        stepper = Stepper.open(manifest, TorchRunner(tmp_path, manifest, CUDA), max_num_tokens=9)
        return stepper.generate([[3], [9, 8, 7, 6, 5], list(range(2, 23))], max_tokens=24)

    assert Operators.best(manifest, CUDA).attention.label == "our kernels"
    drawn = draw()
    monkeypatch.setattr(Operators, "best", lambda manifest, device: Operators.eager())
    assert draw() == drawn
