"""AdapterSource: an opened adapter, a packed file or a PEFT directory; one face for both. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from trierarch.builder.adapter import AdapterManifest, AdapterTensors
from trierarch.builder.adapter_check import check_adapter, check_numbers, check_table
from trierarch.builder.manifest import EngineManifest
from trierarch.builder.packed_adapter import PackedAdapter, digest_of
from trierarch.builder.peft import WEIGHTS_FILE_NAME, PeftDirectory
from trierarch.builder.peft_config import CONFIG_NAME
from trierarch.builder.remembered import Remembered

PEFT_FILES: Final = (CONFIG_NAME, WEIGHTS_FILE_NAME)
"""What makes a directory an adapter."""

_finite: Final = Remembered[str](4096)
"""Digests of tensors that were found to hold no NaN and no infinity."""


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """The version that was opened: it stays, whatever is renamed, deleted or written in its place. Close it."""

    _opened: PackedAdapter | PeftDirectory
    _engine_manifest: EngineManifest

    @classmethod
    def open(cls, path: Path, engine: Path, manifest: EngineManifest) -> Self:
        """Open the files of `path`, and see by their headers whether the engine, whose manifest is given, takes them.

        Raises:
            AdapterError: nothing is there, it is damaged, or the engine cannot compute with it; the remedy is told.
        """
        if path.is_dir():
            return cls(PeftDirectory(path, engine, manifest), manifest)
        packed = PackedAdapter(path)
        try:
            check_table(packed.manifest, packed.table, manifest)
        except BaseException:
            packed.close()
            raise
        return cls(packed, manifest)

    @property
    def manifest(self) -> AdapterManifest:
        """Known without a tensor."""
        return self._opened.manifest

    def read(self) -> AdapterTensors:
        """Every tensor in memory, checked. Its manifest is `manifest`. May be called on any thread, again too.

        Raises:
            AdapterError: it was altered since it was opened, cannot be read, or holds NaN or infinity.
            EngineError: the engine's weights, which a DoRA of PEFT needs, cannot be read.
        """
        tensors = self._opened.read()
        if not isinstance(self._opened, PackedAdapter):
            check_adapter(tensors, self._engine_manifest)
        elif tensors.manifest.digest not in _finite:  # its headers were checked when it was opened
            check_numbers(tensors)
            _finite.add(tensors.manifest.digest)
        return tensors

    def close(self) -> None:
        """Give the descriptors back, when nobody reads; what was read stays. Again is harmless."""
        self._opened.close()

    def __enter__(self) -> Self:
        """Of a `with`, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def read_adapter(path: Path, engine: Path, manifest: EngineManifest) -> AdapterTensors:
    """What `path` holds, packed for an engine and checked; its digest is that of the packed tensors.

    Raises:
        AdapterError: nothing is there, it is damaged, or the engine cannot compute with it; the remedy is told.
        EngineError: the engine's weights, which a DoRA of PEFT needs, cannot be read.
    """
    with AdapterSource.open(path, engine, manifest) as source:
        tensors = source.read()
    digest = digest_of(tensors.arrays)
    return AdapterTensors(tensors.manifest.model_copy(update={"digest": digest}), tensors.arrays)
