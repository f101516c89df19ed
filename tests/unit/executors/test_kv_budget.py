from __future__ import annotations

import pytest

from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import EngineManifest, KvType
from trierarch.python_backend.executors.kv_budget import plan_num_blocks

BLOCK_BYTES = 4 * tiny_architecture().kv_bytes_per_token(KvType.FLOAT32)  # blocks of 4 tokens


def with_budget(**changes: object) -> EngineManifest:
    manifest = tiny_manifest(tiny_architecture())
    return manifest.model_copy(update={"kv_cache": manifest.kv_cache.model_copy(update=changes)})


def test_a_byte_budget_is_taken_at_its_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert plan_num_blocks(with_budget(num_bytes=1000 * BLOCK_BYTES + 5), free_bytes=0) == 1000
    assert "1000 blocks of 4 tokens" in caplog.text


def test_a_fraction_of_free_memory() -> None:
    free_bytes = 200 * BLOCK_BYTES
    assert plan_num_blocks(with_budget(num_bytes=None, memory_fraction=0.5), free_bytes) == 99  # and one to pad


def test_a_fraction_is_not_taken_beyond_what_a_full_batch_can_use() -> None:
    free_bytes = 10**12
    assert plan_num_blocks(with_budget(num_bytes=None), free_bytes) == 8 * 16  # max_batch_size sequences of 64 tokens


@pytest.mark.parametrize("changes", [{"num_bytes": 15 * BLOCK_BYTES}, {"num_bytes": None, "memory_fraction": 0.1}])
def test_room_for_less_than_one_sequence_is_an_error_with_the_remedy(
    changes: dict[str, object],
) -> None:
    free_bytes = 100 * BLOCK_BYTES
    with pytest.raises(ResourceError, match=rf"max_seq_len 64 needs {16 * BLOCK_BYTES}.*--kv-cache-bytes"):
        plan_num_blocks(with_budget(**changes), free_bytes)


def test_int8_holds_nearly_twice_the_tokens_of_bfloat16() -> None:
    architecture = tiny_architecture(head_dim=64)
    num_blocks = {}
    for kv_dtype in (KvType.BFLOAT16, KvType.INT8):
        manifest = tiny_manifest(architecture, kv_dtype=kv_dtype)
        kv_cache = manifest.kv_cache.model_copy(update={"num_bytes": 1 << 20})
        num_blocks[kv_dtype] = plan_num_blocks(manifest.model_copy(update={"kv_cache": kv_cache}), free_bytes=0)
    assert 1.85 < num_blocks[KvType.INT8] / num_blocks[KvType.BFLOAT16] < 2
