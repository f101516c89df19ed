from __future__ import annotations

import pytest
import torch

from support.random_engine import tiny_architecture
from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import DType, KvCache, KvType
from trierarch.python_backend.executors.cpu import kv_arrays as cpu_kv_arrays
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES

CPU = torch.device("cpu")


def test_no_memory_is_a_resource_error() -> None:
    kv_cache = KvCache(dtype=KvType.FLOAT32, block_size=4, bytes_per_token=1)
    with pytest.raises(ResourceError, match="smaller --kv-cache-bytes"):
        KvArrays(2**48, tiny_architecture(), kv_cache, CPU)
    with pytest.raises(ResourceError, match="smaller --kv-cache-bytes"):
        cpu_kv_arrays.KvArrays(2**48, tiny_architecture(), kv_cache)


@pytest.mark.parametrize("dtype", KvType)
def test_the_arrays_take_the_bytes_that_the_manifest_counts(dtype: KvType) -> None:
    architecture = tiny_architecture()
    arrays = KvArrays(6, architecture, KvCache(dtype=dtype, block_size=4, bytes_per_token=1), CPU)
    num_bytes = arrays.array.nbytes + (0 if arrays.scales is None else arrays.scales.nbytes)
    assert num_bytes == (6 + 1) * 4 * architecture.kv_bytes_per_token(dtype)


@pytest.mark.parametrize("dtype", [KvType.FLOAT32, KvType.BFLOAT16, KvType.INT8])
def test_the_kernels_arrays_take_those_bytes_without_padding(dtype: KvType) -> None:
    architecture = tiny_architecture()
    arrays = cpu_kv_arrays.KvArrays(6, architecture, KvCache(dtype=dtype, block_size=4, bytes_per_token=1))
    num_bytes = arrays.array.nbytes + (0 if arrays.scales is None else arrays.scales.nbytes)
    assert num_bytes == 6 * 4 * architecture.kv_bytes_per_token(dtype)


@pytest.mark.parametrize("dtype", KvType)
def test_gathers_what_was_written_and_zeros_elsewhere(dtype: KvType) -> None:
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
        assert torch.equal(gathered[0, :, :5], _stored(written, dtype).transpose(0, 1))
        assert not gathered[0, :, 5:].any()
    arrays.clear(torch.tensor([3]))
    assert not layer.gather(tiles, torch.float32)[0][0, :, :4].any()
    assert not arrays.layers[0].gather(tiles, torch.float32)[0].any()


def _stored(written: torch.Tensor, dtype: KvType) -> torch.Tensor:
    if not dtype.is_quantized:
        return written.to(TORCH_DTYPES[DType(dtype)]).float()
    largest = written.abs().amax(-1, keepdim=True)
    if dtype is KvType.FP8:
        return (written / (largest / 448)).to(torch.float8_e4m3fn).float() * (largest / 448)
    return (written / (largest / 127)).round() * (largest / 127)


@pytest.mark.parametrize("dtype", [KvType.FLOAT32, KvType.INT8, KvType.FP8])
def test_a_cleared_block_forgets_what_was_not_finite(dtype: KvType) -> None:
    arrays = KvArrays(2, tiny_architecture(), KvCache(dtype=dtype, block_size=4, bytes_per_token=1), CPU)
    layer = arrays.layers[0]
    layer.write(torch.arange(2), torch.full((1, 2, 8), torch.nan), torch.full((1, 2, 8), torch.inf))
    tiles = torch.arange(2).view(1, 2, 1)
    assert not any(kept.isfinite().all() for kept in layer.gather(tiles, torch.float32))
    arrays.clear(torch.tensor([0]))
    assert not any(kept.any() for kept in layer.gather(tiles, torch.float32))
