"""FlashInfer's attention on a real GPU, of real sizes, against the reference and our kernels. It may compile for minutes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from support.ragged_attention import RaggedCase
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.manifest import DType, KvType
from trierarch.python_backend.executors.torch import flashinfer_library
from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.flashinfer_attention import FlashInferAttention
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention
from trierarch.python_backend.executors.torch.operators import Operators

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(flashinfer_library.installed_version() is None, reason="FlashInfer is not installed"),
]

CUDA = torch.device("cuda", 0)
LLAMA = RaggedCase(
    2, group=4, head_dim=128, block_size=16, max_length=900, dtype=torch.bfloat16, kv_type=KvType.BFLOAT16
)
CASES = {
    "llama": LLAMA,
    "gemma": replace(LLAMA, seed=3, group=2, head_dim=256, block_size=32, window=100, softcap=50.0),
    "a window of one": replace(LLAMA, seed=4, head_dim=64, window=1),
    "groups of seven": replace(LLAMA, seed=5, group=7, head_dim=64, max_length=300),
    "float16": replace(LLAMA, seed=6, dtype=torch.float16, kv_type=KvType.FLOAT16),
}


def backend_of(case: RaggedCase) -> FlashInferAttention:
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    num_processors = torch.cuda.get_device_properties(CUDA).multi_processor_count
    shape = AttentionShape(case.num_kv_heads, 0.7, case.softcap)
    wrapper = BatchPrefillWithPagedKVCacheWrapper
    return FlashInferAttention(wrapper, "", case.num_heads, case.head_dim, shape, CUDA, num_processors)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_reference_and_our_kernels(case: RaggedCase) -> None:
    backend = backend_of(case)
    for seed in range(3):  # one plan after the other
        found, expected = replace(case, seed=case.seed + 10 * seed).attend(backend, CUDA, poison=math.nan)
        torch.testing.assert_close(found.float().cpu(), expected, rtol=0.03, atol=0.03)
    ours, _ = replace(case, seed=case.seed + 20).attend(RaggedAttention(case.group, num_processors=1), CUDA)
    torch.testing.assert_close(found, ours, rtol=0.03, atol=0.03)


def test_steps_that_the_host_plans_before_the_device_comes_to_them() -> None:
    """As prompts are computed in pieces of which none draws: nothing waits for the device but the plans themselves."""
    backend = backend_of(LLAMA)
    layer = LLAMA.arrays(CUDA).layers[0]
    layer.array.normal_()
    blocks = BlockShape(LLAMA.block_size, LLAMA.num_kv_heads, LLAMA.num_blocks)
    shape = AttentionShape(LLAMA.num_kv_heads, 0.7, None)
    cases = [replace(LLAMA, seed=seed) for seed in range(6)]

    def attend(case: RaggedCase) -> torch.Tensor:
        batch = InputBatch.build(case.plan(), {None}, blocks, case.dtype, CUDA, backend)
        queries = torch.randn(batch.num_tokens, case.num_heads, 128, generator=torch.Generator().manual_seed(case.seed))
        return batch.attention[None](queries.to(CUDA, case.dtype), layer, shape)

    expected = []
    for case in cases:
        expected.append(attend(case))
        torch.cuda.synchronize()
    found = []
    for case in cases:
        torch.cuda._sleep(50_000_000)
        found.append(attend(case))
    torch.cuda.synchronize()
    assert all(mine.equal(theirs) for mine, theirs in zip(found, expected, strict=True))


def test_it_holds_its_trial_and_serves() -> None:
    manifest = tiny_manifest(tiny_architecture(head_dim=64, attention_softcap=30.0), DType.BFLOAT16)
    assert flashinfer_library.obstacle(manifest) is None
    assert Operators.best(manifest, CUDA).attention.label.startswith("FlashInfer")
