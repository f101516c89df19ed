"""PackedAdapter: an open file of an adapter as `builder/adapter.py` lays it out; how such files are written and told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from trierarch.builder.adapter import (
    ADAPTER_SCHEMA_VERSION,
    METADATA_KEY,
    AdapterManifest,
    AdapterTensors,
)
from trierarch.builder.errors import AdapterError
from trierarch.builder.safetensors_file import Array, Header, SafetensorsError, SafetensorsFile, write_safetensors

REPACK: Final = "pack it anew with: trierarch adapters pack"


class PackedAdapter:
    """An open file: the version that was opened, whatever becomes of its name."""

    def __init__(self, path: Path) -> None:
        """Open it and read its header.

        Raises:
            AdapterError: it is not there, is no packed adapter, or one of another schema version.
        """
        self._path = path
        try:
            self._file = SafetensorsFile(path)
        except FileNotFoundError:
            raise AdapterError(f"{path} does not exist; name a packed adapter or a PEFT directory") from None
        except (OSError, SafetensorsError) as error:
            raise _unreadable(path, error) from error
        try:
            self.manifest: AdapterManifest = _manifest(path, self._file.metadata)
        except BaseException:
            self._file.close()
            raise

    @property
    def headers(self) -> Mapping[str, Header]:
        """Type and shape of each tensor, not checked against anything."""
        return self._file.headers

    def read(self) -> AdapterTensors:
        """Read into memory, since a mapped file that somebody cuts short would end the server.

        Raises:
            AdapterError: it cannot be read, or its tensors are not those that its digest is of.
        """
        try:
            arrays = self._file.arrays(self._file.read())
        except (OSError, SafetensorsError) as error:
            raise _unreadable(self._path, error) from error
        if digest_of(arrays) != self.manifest.digest:
            raise AdapterError(f"{self._path} was altered: its tensors are not those of its digest; {REPACK}")
        return AdapterTensors(self.manifest, arrays)

    def close(self) -> None:
        """Give the descriptor back; what was read stays."""
        self._file.close()


def read_manifest(path: Path) -> AdapterManifest:
    """The manifest of a packed file; no tensor is touched.

    Raises:
        AdapterError: as PackedAdapter.
    """
    packed = PackedAdapter(path)
    packed.close()
    return packed.manifest


def write_packed(tensors: AdapterTensors, path: Path) -> None:
    """Write a packed file; one that is at `path` is replaced at the last moment. Equal adapters give equal bytes.

    Raises:
        ResourceError: the disk is full or cannot be written.
    """
    manifest = json.dumps(tensors.manifest.model_dump(mode="json"), sort_keys=True)
    write_safetensors(path, tensors.arrays, {METADATA_KEY: manifest})


def digest_of(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over each tensor's name, type and shape, and its bytes, in the order of names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(_label(name, array.dtype.str, array.shape))
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _label(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """Most adapters of an engine have tensors of the same names and shapes."""
    return json.dumps([name, np.dtype(dtype).name, list(shape)]).encode() + b"\n"


def _manifest(path: Path, metadata: Mapping[str, str]) -> AdapterManifest:
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise AdapterError(f"{path} is no packed adapter: it has no {METADATA_KEY} in its metadata; {REPACK}")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != ADAPTER_SCHEMA_VERSION:
        raise AdapterError(
            f"{path}: schema_version is {version!r}, this Trierarch reads {ADAPTER_SCHEMA_VERSION}; {REPACK}"
        )
    try:
        return AdapterManifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise AdapterError(f"{path}: {field}: {first['msg']}; {REPACK}") from error


def _unreadable(path: Path, error: Exception) -> AdapterError:
    return AdapterError(f"{path} cannot be read ({error}); {REPACK}")
