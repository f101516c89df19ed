"""EngineMatrices: an engine's matrices as numbers, dequantised, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from trierarch.builder.adapter import STACKED, piece_shape, to_floats
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import GROUP_SIZE, WEIGHTS_NAME, EngineManifest
from trierarch.builder.safetensors_file import SafetensorsFile
from trierarch.builder.tensors import Array

Floats = npt.NDArray[np.float32]
_CHUNK_ROWS: Final = 1024
"""Rows worked on at once: a few MB of floats."""


class EngineMatrices:
    """The weights file, mapped."""

    def __init__(self, engine: Path, manifest: EngineManifest) -> None:
        """Map it.

        Raises:
            EngineError: it cannot be read.
        """
        self._path = engine / WEIGHTS_NAME
        self._manifest = manifest
        try:
            with SafetensorsFile(self._path) as file:
                self._arrays = file.map()
        except (OSError, ValueError) as error:
            raise EngineError(
                f"{self._path} cannot be read ({error}); rebuild the engine with: trierarch build"
            ) from error

    def chunks(self, stem: str, piece: str) -> Iterator[tuple[slice, Floats]]:
        """(rows, their numbers) of a piece, some rows at a time; of embed, rows are tokens.

        `stem` is a name as `builder/adapter.py` has it, such as layers.0.q.

        Raises:
            EngineError: the file lacks it.
        """
        prefix = stem.removesuffix(piece)
        name, first, count = self._place(prefix, piece)
        for begin in range(0, count, _CHUNK_ROWS):
            end = min(begin + _CHUNK_ROWS, count)
            yield slice(begin, end), self._rows(name, slice(first + begin, first + end))

    def _place(self, prefix: str, piece: str) -> tuple[str, int, int]:
        """Name of the matrix that holds a piece, first row, number of rows."""
        architecture = self._manifest.architecture
        if piece == "embed" or (piece == "lm_head" and architecture.tie_embeddings):
            return "embed", 0, architecture.vocab_size
        matrix, stacked = next((name, pieces) for name, pieces in STACKED.items() if piece in pieces)
        sizes = [piece_shape(architecture, one)[0] for one in stacked]
        place = stacked.index(piece)
        return prefix + matrix, sum(sizes[:place]), sizes[place]

    def _rows(self, name: str, rows: slice) -> Floats:
        if f"{name}.weight" in self._arrays:
            return to_floats(self._arrays[f"{name}.weight"][rows])
        try:
            codes, scales = self._arrays[f"{name}.codes"][rows], self._arrays[f"{name}.scales"]
        except KeyError:
            raise EngineError(f"{self._path} lacks {name}; rebuild the engine with: trierarch build") from None
        if scales.dtype == np.float32:
            scaled: Floats = e4m3_to_floats(codes) * self._fp8_scales(scales, rows, codes.shape[1])
            return scaled
        scales = scales[rows]
        offsets = self._arrays.get(f"{name}.offsets")
        grouped = _unpacked(codes, is_int4=offsets is not None).reshape(len(codes), -1, GROUP_SIZE)
        numbers: Floats = grouped * scales[..., None].astype(np.float32)
        if offsets is not None:
            numbers += offsets[rows][..., None].astype(np.float32)
        return numbers.reshape(len(codes), -1)

    def _fp8_scales(self, scales: Array, rows: slice, num_inputs: int) -> Floats:
        """(n, num_inputs or 1): those of some rows of an fp8 matrix."""
        if scales.ndim == 1:
            of_rows: Floats = scales[rows, None]
            return of_rows
        assert self._manifest.quantization is not None
        block = self._manifest.quantization.fp8_block
        assert block is not None, "the weights' table has seen to it"
        spread: Floats = scales[np.arange(rows.start, rows.stop) // block[0]].repeat(block[1], axis=1)[:, :num_inputs]
        return spread


def e4m3_to_floats(bits: Array) -> Floats:
    """Numbers of E4M3 (arXiv 2209.05433): a sign, four bits of an exponent biased by 7, three of a fraction; no infinity."""
    numbers: Floats = _E4M3[bits]
    return numbers


def _e4m3_table() -> Floats:
    """What each byte stands for. (256)"""
    bits = np.arange(256)
    exponents, fractions = bits >> 3 & 15, bits & 7
    magnitudes = np.where(exponents == 0, fractions * 2.0**-9, (8 + fractions) * 2.0 ** (exponents - 10.0))
    magnitudes[(bits & 127) == 127] = np.nan
    numbers: Floats = np.where(bits >> 7, -magnitudes, magnitudes).astype(np.float32)
    return numbers


_E4M3: Final = _e4m3_table()


def _unpacked(codes: Array, is_int4: bool) -> Floats:
    if not is_int4:
        return codes.astype(np.float32)
    nibbles: Floats = np.stack((codes & 15, codes >> 4), axis=-1).astype(np.float32)
    return nibbles.reshape(len(codes), -1)
