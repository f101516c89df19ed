"""Packer: PEFT's numbers become an engine's: scaled and gained in float32, then rounded once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from trierarch.builder.adapter import piece_shape, rounded_to, to_floats
from trierarch.builder.engine_matrices import EngineMatrices, Floats
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import DType, EngineManifest
from trierarch.builder.peft_config import PeftConfig
from trierarch.builder.peft_names import PeftModule
from trierarch.builder.tensors import Array


class Packer:
    """Packs modules whose headers were checked."""

    def __init__(
        self,
        config: PeftConfig,
        engine: EngineManifest,
        arrays: Mapping[str, Array],
        matrices: EngineMatrices | None,
    ) -> None:
        """`arrays` are the file's, by its own names; `matrices` the engine's, where a module has magnitudes."""
        self._config, self._engine, self._arrays, self._matrices = config, engine, arrays, matrices

    def pack(self, modules: Iterable[PeftModule]) -> dict[str, Array]:
        """By the names of `builder/adapter.py`.

        Raises:
            AdapterError: a number is NaN or infinite, too large for the engine's dtype, or a gain is.
            EngineError: the engine lacks a matrix.
        """
        packed: dict[str, Array] = {}
        with np.errstate(all="ignore"):  # what is not finite is refused by name
            for module in modules:
                if "whole" in module.tensors:
                    packed[f"{module.pieces[0][0]}.weight"] = self._rounded(
                        module, "whole", self._floats(module, "whole")
                    )
                elif module.is_embedding:
                    packed |= self._embedding(module)
                else:
                    packed |= self._linear(module)
        return packed

    def _linear(self, module: PeftModule) -> dict[str, Array]:
        a = self._floats(module, "a")
        scaled = self._floats(module, "b") * np.float32(self._config.scaling(module.name))
        magnitude = self._floats(module, "magnitude") if module.is_dora else None
        rounded_a = self._rounded(module, "a", a)
        packed: dict[str, Array] = {}
        begin = 0
        for stem, piece in module.pieces:
            end = begin + piece_shape(self._engine.architecture, piece)[0]
            b = scaled[begin:end]
            if magnitude is not None:
                gain = magnitude[begin:end] / self._row_norms(stem, piece, a, b)
                packed[f"{stem}.gain"] = _finite(gain, module.tensors["magnitude"], "divided by the norms of its rows")
                b = b * gain[:, None]
            packed[f"{stem}.a"] = rounded_a
            packed[f"{stem}.b"] = self._rounded(module, "b", b)
            begin = end
        return packed

    def _embedding(self, module: PeftModule) -> dict[str, Array]:
        a = self._floats(module, "embedding_a")
        scaled = self._floats(module, "embedding_b") * np.float32(self._config.scaling(module.name))
        if not module.is_dora:
            return {
                "embed.a": self._rounded(module, "embedding_a", np.ascontiguousarray(a.T)),
                "embed.b": self._rounded(module, "embedding_b", scaled),
            }
        # A gain of each hidden element, which every token's row has: the table is a whole other one.
        magnitude = self._floats(module, "magnitude")
        squares = np.zeros(len(magnitude), np.float64)
        for rows, table in self._chunks("embed", "embed"):
            squares += np.square(table + a.T[rows] @ scaled.T, dtype=np.float64).sum(axis=0)
        gain = (magnitude / np.sqrt(squares)).astype(np.float32)
        _finite(gain, module.tensors["magnitude"], "divided by the norms of its columns")
        parts = [
            self._rounded(module, "magnitude", gain * (table + a.T[rows] @ scaled.T))
            for rows, table in self._chunks("embed", "embed")
        ]
        return {"embed.weight": np.concatenate(parts)}

    def _row_norms(self, stem: str, piece: str, a: Floats, b: Floats) -> Floats:
        """Of W + b a."""
        norms: list[Floats] = [
            np.linalg.norm(weight + b[rows] @ a, axis=1) for rows, weight in self._chunks(stem, piece)
        ]
        return np.concatenate(norms)

    def _chunks(self, stem: str, piece: str) -> Iterable[tuple[slice, Floats]]:
        assert self._matrices is not None, "a module with magnitudes makes the adapter a DoRA"
        return self._matrices.chunks(stem, piece)

    def _floats(self, module: PeftModule, part: str) -> Floats:
        name = module.tensors[part]
        return _finite(to_floats(self._arrays[name]), name, "as it is stored")

    def _rounded(self, module: PeftModule, part: str, values: Floats) -> Array:
        """In the engine's dtype."""
        dtype = self._engine.dtype
        rounded = rounded_to(values, dtype)
        if dtype is DType.FLOAT16:
            _finite(rounded.astype(np.float32), module.tensors[part], "scaled and rounded to the engine's float16")
        else:
            _finite(values, module.tensors[part], "scaled")
        return rounded


def _finite(values: Floats, name: str, when: str) -> Floats:
    if not np.isfinite(values).all():
        raise AdapterError(
            f"{name} holds NaN or infinity {when}; train the adapter anew, or take an earlier step of it"
        )
    return values
