"""Parts of layers by kernels, beside the same by torch's operators."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trierarch.builder.manifest import Activation, KvType
from trierarch.python_backend.executors.torch.eager_layers import EagerLayers
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv
from trierarch.python_backend.executors.torch.layer_backend import LayerBackend
from trierarch.python_backend.executors.torch.residual import Residual
from trierarch.python_backend.executors.torch.rope import RotaryEmbedding

EPS = 1e-6
KV_DTYPES = {
    KvType.FLOAT32: torch.float32,
    KvType.BFLOAT16: torch.bfloat16,
    KvType.INT8: torch.int8,
    KvType.FP8: torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class HeadsCase:
    """Tokens whose keys and values go to slots all over a layer."""

    num_heads: int = 3
    num_kv_heads: int = 2
    head_dim: int = 12
    rotary_dim: int = 12
    """0 rotates nothing."""
    has_norm: bool = False
    kv_type: KvType = KvType.FLOAT32
    dtype: torch.dtype = torch.float32
    num_tokens: int = 5

    def run(self, backend: LayerBackend, device: torch.device) -> tuple[torch.Tensor, LayerKv]:
        """Queries, and the layer with what was stored."""
        generator = torch.Generator().manual_seed(7)
        kv_dtype, block_size = KV_DTYPES[self.kv_type], 4
        shape = (2, self.num_tokens + 1, self.num_kv_heads, block_size, self.head_dim)
        array = torch.zeros(shape, device=device).to(kv_dtype)
        scales = torch.zeros(shape[:-1], device=device) if self.kv_type.is_quantized else None
        layer = LayerKv(array, scales)
        num_qk = self.num_heads + self.num_kv_heads
        weight = torch.randn(num_qk, self.head_dim, generator=generator).to(device) if self.has_norm else None
        heads = torch.randn(self.num_tokens, num_qk + self.num_kv_heads, self.head_dim, generator=generator)
        slots = torch.randperm(self.num_tokens * self.num_kv_heads * block_size, generator=generator)
        rotation = None
        if self.rotary_dim:
            positions = torch.arange(self.num_tokens, device=device) * 17
            rope = RotaryEmbedding(torch.rand(self.rotary_dim // 2, generator=generator).to(device), 1.5)
            rotation = rope(positions, self.dtype)
        compute = backend.heads(self.num_heads, self.num_kv_heads, weight, EPS)
        kv_rows = slots[: self.num_tokens * self.num_kv_heads].to(device)
        return compute(heads.to(device, self.dtype), rotation, layer, kv_rows), layer


def check_heads(case: HeadsCase, backend: LayerBackend, device: torch.device, tolerance: float) -> None:
    """Codes may differ by one where a number lies between two."""
    queries, layer = case.run(backend, device)
    expected, reference = case.run(EagerLayers(), device)
    assert queries.dtype is expected.dtype
    torch.testing.assert_close(queries, expected, rtol=tolerance, atol=tolerance)
    if layer.scales is None or reference.scales is None:
        torch.testing.assert_close(layer.array.float(), reference.array.float(), rtol=tolerance, atol=tolerance)
        return
    torch.testing.assert_close(layer.scales, reference.scales, rtol=tolerance, atol=tolerance)
    found, wanted = layer.array.float(), reference.array.float()
    assert (found - wanted).abs().max() <= (1 if case.kv_type is KvType.INT8 else 32)
    assert (found != wanted).float().mean() < 0.05


def check_norms(backend: LayerBackend, device: torch.device, dtype: torch.dtype, size: int, tolerance: float) -> None:
    """Alone, of a sum, and of rows that lie apart."""
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(size, generator=generator).to(device)
    wide = torch.randn(5, 2 * size, generator=generator).to(device, dtype)
    x, added = wide[:, :size], torch.randn(5, size, generator=generator).to(device, dtype)
    mine, theirs = backend.norm(weight, EPS), EagerLayers().norm(weight, EPS)
    torch.testing.assert_close(mine(x), theirs(x), rtol=tolerance, atol=tolerance)
    for residual in (Residual(x, added), Residual(added)):
        total, normed = mine.of_sum(residual)
        expected, normed_expected = theirs.of_sum(residual)
        assert total.equal(expected)
        assert normed.dtype is dtype
        torch.testing.assert_close(normed, normed_expected, rtol=tolerance, atol=tolerance)


def check_gates(backend: LayerBackend, device: torch.device, dtype: torch.dtype, size: int, tolerance: float) -> None:
    """Far from zero too, on both sides."""
    gate_up = torch.randn(4, 2 * size, generator=torch.Generator().manual_seed(size))
    gate_up[:, :size] *= torch.tensor([1, 10, 100, 1e4])[:, None]
    gate_up = gate_up.to(device, dtype)
    for activation in Activation:
        found, expected = backend.gate(activation)(gate_up), EagerLayers().gate(activation)(gate_up.clone())
        assert found.dtype is dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
