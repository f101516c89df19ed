"""CodedMatrix: a matrix of codes as kernels read it, whatever kind of codes, and its products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton

from trierarch.builder.manifest import GROUP_SIZE
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.kernels import coded_products
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.torch.row_codes import MAX_CODES

FEW_ROWS: Final = 4
"""Up to which each row has programs of its own; beyond, decoding a matrix for each costs more than tensor cores do."""
MANY_ROWS: Final = 64
"""From above which the matrix is written down in the activations' type and multiplied by torch's own product."""
_SMALL_TILE: Final = 16
"""Rows of a tile: a tensor core multiplies no fewer."""
_BLOCK_N: Final = 16
"""Outputs of a program of few rows."""
_TURN_BYTES: Final = 512
"""Codes of an output that such a program reads in a turn of its loop."""
_TILE_N: Final = 64
_TILE_BYTES: Final = 256
"""Of a row of activations that a tile reads in a turn: several turns are under way in shared memory."""
_LINE: Final = 1024
"""Outputs of a program that adds shares, and bytes of one that writes elements down."""
_PROGRAMS_PER_PROCESSOR: Final = 4
_MIN_COLUMNS_PER_SPLIT: Final = 512
_MAX_SPLITS: Final = 8
_OPTIONS: Final = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
"""Of the compiler. They and the sizes above were chosen by counts of bytes and registers, by no measurement yet."""
_WHOLE: Final = 1 << 30
"""Columns of a scale that is a whole row's."""


@dataclass(frozen=True, slots=True)
class CodedMatrix:
    """(out_features, in_features); an element is scale * code, plus an offset where there are offsets."""

    codes: torch.Tensor  # (out_features, bytes of a row): int8; uint8, two codes each or E4M3's bits; or float8_e4m3fn
    scales: torch.Tensor  # by rows of scales
    offsets: torch.Tensor | None  # likewise; of int4
    scale_rows: int
    """Rows of the matrix that share a row of scales."""
    scale_columns: int
    """Columns that share a scale: a multiple of GROUP_SIZE."""
    is_bits: bool
    """E4M3 for a GPU that knows it not."""
    num_processors: int
    """That the device has. What a sum is shared out over depends on it and on the matrix, never on the rows."""

    @classmethod
    def of(cls, weight: QuantizedMatrix | Fp8Matrix, num_processors: int, has_e4m3: bool) -> CodedMatrix:
        """The same memory. has_e4m3: whether the device converts it."""
        if isinstance(weight, QuantizedMatrix):
            return cls(
                weight.codes.contiguous(),
                weight.scales.contiguous(),
                None if weight.offsets is None else weight.offsets.contiguous(),
                scale_rows=1,
                scale_columns=GROUP_SIZE,
                is_bits=False,
                num_processors=num_processors,
            )
        codes, scales = weight.codes.contiguous(), weight.scales.contiguous()
        scale_rows, scale_columns = weight.block or (1, _WHOLE)
        return cls(
            codes if has_e4m3 else codes.view(torch.uint8),
            scales[:, None] if weight.block is None else scales,
            None,
            scale_rows=scale_rows,
            scale_columns=scale_columns,
            is_bits=not has_e4m3,
            num_processors=num_processors,
        )

    @staticmethod
    def takes(weight: QuantizedMatrix | Fp8Matrix) -> bool:
        """Whether no scale ends within a group."""
        return isinstance(weight, QuantizedMatrix) or weight.block is None or not weight.block[1] % GROUP_SIZE

    @property
    def num_outputs(self) -> int:
        """Rows of the matrix."""
        return len(self.codes)

    @property
    def num_inputs(self) -> int:
        """Its columns."""
        return self.codes.shape[1] * (2 if self.is_int4 else 1)

    @property
    def is_int4(self) -> bool:
        """Whether a byte is two codes."""
        return self.offsets is not None

    def times_rows(self, x: torch.Tensor, bias: torch.Tensor | None, rounds_x: bool = False) -> torch.Tensor:
        """x @ self.T + bias for few rows, each summed by itself. x: (rows, in) → (rows, out).

        rounds_x: to E4M3, as `quantize_rows` does.
        """
        num_blocks = triton.cdiv(self.num_outputs, _BLOCK_N)
        splits = self._num_splits(num_blocks)
        y, shares = self._outputs(x, splits)
        bytes_of_group = GROUP_SIZE // 2 if self.is_int4 else GROUP_SIZE
        is_integer = self.is_int4 or self.codes.dtype is torch.int8
        codes = self.codes.view(torch.int32) if is_integer else self.codes
        coded_products.multiply_rows[(len(x), num_blocks, splits)](
            y,
            shares,
            x,
            codes,
            self.scales,
            self.offsets,
            bias,
            x.stride(0),
            codes.shape[1],
            self.num_outputs,
            self.scales.stride(0),
            self.scale_rows,
            self.scale_columns,
            MOST_X=MAX_CODES[torch.float8_e4m3fn] if rounds_x else 0.0,
            BLOCK_N=_BLOCK_N,
            BLOCK_G=_TURN_BYTES // bytes_of_group,
            **self._kind(bias, splits),
            **_OPTIONS,
        )
        return self._summed(y, shares, bias, splits)

    def times_tile(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ self.T + bias for some rows, whose elements are rounded to x's type. x: (rows, in) → (rows, out)."""
        tile_rows = _SMALL_TILE if len(x) <= _SMALL_TILE else MANY_ROWS
        num_blocks = triton.cdiv(self.num_outputs, _TILE_N)
        splits = self._num_splits(num_blocks)
        y, shares = self._outputs(x, splits)
        coded_products.multiply_tiles[(triton.cdiv(len(x), tile_rows), num_blocks, splits)](
            y,
            shares,
            x,
            self.codes,
            self.scales,
            self.offsets,
            bias,
            x.stride(0),
            len(x),
            self.codes.shape[1],
            self.num_outputs,
            self.scales.stride(0),
            self.scale_rows,
            self.scale_columns,
            BLOCK_M=tile_rows,
            BLOCK_N=_TILE_N,
            BLOCK_G=_TILE_BYTES // x.itemsize // GROUP_SIZE,
            **self._kind(bias, splits),
            **_OPTIONS,
        )
        return self._summed(y, shares, bias, splits)

    def elements(self, dtype: torch.dtype) -> torch.Tensor:
        """(out_features, in_features)."""
        result = torch.empty((self.num_outputs, self.num_inputs), dtype=dtype, device=self.codes.device)
        coded_products.dequantize[(self.num_outputs, triton.cdiv(self.codes.shape[1], _LINE))](
            result,
            self.codes,
            self.scales,
            self.offsets,
            self.codes.shape[1],
            self.scales.stride(0),
            self.scale_rows,
            self.scale_columns,
            IS_INT4=self.is_int4,
            IS_BITS=self.is_bits,
            BLOCK_B=_LINE,
            **_OPTIONS,
        )
        return result

    def _num_splits(self, num_blocks: int) -> int:
        """Programs that share an output's inputs: a power of two, by which the device is kept busy with one row."""
        wanted = self.num_processors * _PROGRAMS_PER_PROCESSOR // num_blocks
        most = min(wanted, self.num_inputs // _MIN_COLUMNS_PER_SPLIT, _MAX_SPLITS)
        return 1 << max(most, 1).bit_length() - 1

    def _outputs(self, x: torch.Tensor, splits: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        y = torch.empty((len(x), self.num_outputs), dtype=x.dtype, device=x.device)
        if splits == 1:
            return y, None
        return y, torch.empty((len(x), splits, self.num_outputs), dtype=torch.float32, device=x.device)

    def _kind(self, bias: torch.Tensor | None, splits: int) -> dict[str, Any]:
        """What kernels are compiled for."""
        return {
            "IS_INT4": self.is_int4,
            "IS_BITS": self.is_bits,
            "HAS_BIAS": bias is not None,
            "SPLITS": splits,
        }

    def _summed(
        self, y: torch.Tensor, shares: torch.Tensor | None, bias: torch.Tensor | None, splits: int
    ) -> torch.Tensor:
        if shares is not None:
            coded_products.add_shares[(len(y), triton.cdiv(self.num_outputs, _LINE))](
                y,
                shares,
                bias,
                self.num_outputs,
                HAS_BIAS=bias is not None,
                SPLITS=splits,
                BLOCK_N=_LINE,
                **_OPTIONS,
            )
        return y
