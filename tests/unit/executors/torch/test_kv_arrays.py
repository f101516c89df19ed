from __future__ import annotations

import pytest
import torch

from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import DType, EngineManifest, KvCache
from trierarch.python_backend.executors.torch import kv_arrays
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays, plan_num_blocks

CPU = torch.device("cpu")
BLOCK_BYTES = 4 * tiny_architecture().kv_bytes_per_token(DType.FLOAT32)  # blocks of 4 tokens


def with_budget(**changes: object) -> EngineManifest:
    manifest = tiny_manifest(tiny_architecture())
    return manifest.model_copy(update={"kv_cache": manifest.kv_cache.model_copy(update=changes)})


def test_a_byte_budget_is_taken_at_its_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert plan_num_blocks(with_budget(num_bytes=1000 * BLOCK_BYTES + 5), CPU) == 1000
    assert "1000 blocks of 4 tokens" in caplog.text


def test_a_fraction_of_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_arrays, "free_memory", lambda device: 200 * BLOCK_BYTES)
    assert plan_num_blocks(with_budget(num_bytes=None, memory_fraction=0.5), CPU) == 99  # and one to pad


def test_a_fraction_is_not_taken_beyond_what_a_full_batch_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_arrays, "free_memory", lambda device: 10**12)
    assert plan_num_blocks(with_budget(num_bytes=None), CPU) == 8 * 16  # max_batch_size sequences of 64 tokens


@pytest.mark.parametrize("changes", [{"num_bytes": 15 * BLOCK_BYTES}, {"num_bytes": None, "memory_fraction": 0.1}])
def test_room_for_less_than_one_sequence_is_an_error_with_the_remedy(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_arrays, "free_memory", lambda device: 100 * BLOCK_BYTES)
    with pytest.raises(ResourceError, match=rf"max_seq_len 64 needs {16 * BLOCK_BYTES}.*--kv-cache-bytes"):
        plan_num_blocks(with_budget(**changes), CPU)


def test_no_memory_is_a_resource_error() -> None:
    kv_cache = KvCache(dtype=DType.FLOAT32, block_size=4, bytes_per_token=1)
    with pytest.raises(ResourceError, match="smaller --kv-cache-bytes"):
        KvArrays(2**48, tiny_architecture(), kv_cache, CPU)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_gathers_what_was_written_and_zeros_elsewhere(dtype: DType) -> None:
    num_heads, block_size, head_dim = 2, 4, 8
    arrays = KvArrays(6, tiny_architecture(), KvCache(dtype=dtype, block_size=4, bytes_per_token=1), CPU)
    layer = arrays.layers[1]
    keys, values = torch.randn(5, num_heads, head_dim), torch.randn(5, num_heads, head_dim)
    slots = [(3, 0), (3, 1), (3, 2), (3, 3), (0, 0)]  # block, offset: a sequence in blocks 3, 0
    rows = [(block * num_heads + head) * block_size + offset for block, offset in slots for head in range(num_heads)]
    layer.write(torch.tensor(rows), keys, values)
    tiles = torch.tensor([[[block * num_heads + head for block in (3, 0, arrays.padding_block)] for head in range(2)]])
    for gathered, written in zip(layer.gather(tiles, torch.float32), (keys, values), strict=True):
        assert gathered.shape == (1, num_heads, 12, head_dim)
        stored = written.bfloat16().float() if dtype is DType.BFLOAT16 else written
        assert torch.equal(gathered[0, :, :5], stored.transpose(0, 1))
        assert not gathered[0, :, 5:].any()
    arrays.clear(torch.tensor([3]))
    assert not layer.gather(tiles, torch.float32)[0][0, :, :4].any()
    assert not arrays.layers[0].gather(tiles, torch.float32)[0].any()
