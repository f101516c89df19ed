"""Parts of layers that are one launch each."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton

from trierarch.builder.manifest import Activation
from trierarch.python_backend.executors.torch.kernels import fused_rows
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv
from trierarch.python_backend.executors.torch.residual import Residual
from trierarch.python_backend.executors.torch.rope import Rotation
from trierarch.python_backend.executors.torch.row_codes import MAX_CODES

_GATE_BLOCK: Final = 1024
_ELEMENTS_PER_WARP: Final = 512
"""Of a row that a program holds: 16 to a thread."""
_MAX_WARPS: Final = 16
_OPTIONS: Final = {"num_stages": 1, "enable_fp_fusion": True}
"""Of the compiler: there is no loop to be pipelined."""


class FusedNorm:
    """Implements Norm."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        """weight: (n) float32."""
        self._weight = weight
        self._eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See Norm."""
        return self.of_sum(Residual(x))[1]

    def of_sum(self, residual: Residual) -> tuple[torch.Tensor, torch.Tensor]:
        """See Norm.of_sum."""
        x, added = _rows(residual.x), None if residual.added is None else _rows(residual.added)
        normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        total = x if added is None else torch.empty_like(normed)
        if len(x):
            fused_rows.normalize[(len(x),)](
                normed,
                total,
                x,
                added,
                self._weight,
                x.stride(0),
                0 if added is None else added.stride(0),
                x.shape[1],
                self._eps,
                HAS_ADDED=added is not None,
                **_whole_row(x.shape[1]),
            )
        return total, normed


class FusedGate:
    """Implements Gate."""

    def __init__(self, activation: Activation) -> None:
        self._is_silu = activation is Activation.SILU

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See Gate."""
        gate_up = _rows(gate_up)
        size = gate_up.shape[1] // 2
        result = torch.empty((len(gate_up), size), dtype=gate_up.dtype, device=gate_up.device)
        if len(gate_up):
            fused_rows.gate[(len(gate_up), triton.cdiv(size, _GATE_BLOCK))](
                result,
                gate_up,
                gate_up.stride(0),
                size,
                IS_SILU=self._is_silu,
                BLOCK=_GATE_BLOCK,
                num_warps=4,
                **_OPTIONS,
            )
        return result


class FusedHeads:
    """Implements Heads."""

    def __init__(self, num_heads: int, num_kv_heads: int, qk_norm: torch.Tensor | None, eps: float) -> None:
        """As LayerBackend.heads takes them."""
        self._num_heads, self._num_kv_heads = num_heads, num_kv_heads
        self._weight = qk_norm
        self._eps = eps

    def __call__(
        self, heads: torch.Tensor, rotation: Rotation | None, kv: LayerKv, kv_rows: torch.Tensor
    ) -> torch.Tensor:
        """See Heads."""
        num_tokens, _, head_dim = heads.shape
        assert heads.stride(1) == head_dim
        assert heads.stride(2) == 1
        keys, values = kv.array
        key_scales, value_scales = (None, None) if kv.scales is None else kv.scales
        queries = torch.empty((num_tokens, self._num_heads, head_dim), dtype=heads.dtype, device=heads.device)
        fused_rows.place_heads[(num_tokens, self._num_heads + 2 * self._num_kv_heads)](
            queries,
            keys,
            values,
            key_scales,
            value_scales,
            heads,
            self._weight,
            None if rotation is None else rotation.cos,
            None if rotation is None else rotation.sin,
            kv_rows,
            heads.stride(0),
            self._num_heads,
            self._num_kv_heads,
            self._eps,
            HEAD_DIM=head_dim,
            ROTARY_DIM=0 if rotation is None else rotation.cos.shape[-1],
            HAS_NORM=self._weight is not None,
            MOST=0.0 if kv.scales is None else MAX_CODES[keys.dtype],
            BLOCK_D=triton.next_power_of_2(head_dim),
            num_warps=1,
            **_OPTIONS,
        )
        return queries


def quantize_rows(rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """As row_codes.quantize_rows, in one launch."""
    rows = _rows(rows)
    codes = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    scales = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    if len(rows):
        fused_rows.quantize[(len(rows),)](
            codes,
            scales,
            rows,
            rows.stride(0),
            rows.shape[1],
            MOST=MAX_CODES[dtype],
            **_whole_row(rows.shape[1]),
        )
    return codes, scales


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Whose elements lie one after the other."""
    return x if x.stride(1) == 1 else x.contiguous()


def _whole_row(size: int) -> dict[str, Any]:
    """What a kernel is compiled with whose programs hold a row of `size`."""
    block = triton.next_power_of_2(size)
    return {"BLOCK": block, "num_warps": min(_MAX_WARPS, max(1, block // _ELEMENTS_PER_WARP)), **_OPTIONS}
