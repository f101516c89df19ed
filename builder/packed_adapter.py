"""PackedAdapter: an open file of an adapter as `builder/adapter.py` lays it out; how such files are written and told apart."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
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
from trierarch.builder.remembered import Remembered
from trierarch.builder.safetensors_file import FileIdentity, SafetensorsFile, write_safetensors, written_order
from trierarch.builder.safetensors_header import Header, SafetensorsError, TensorTable
from trierarch.builder.tensors import Array, Tensors, headers_of

REPACK: Final = "pack it anew with: trierarch adapters pack"

_SETTLED_NS: Final = 2_000_000_000
"""What was last written to this long ago has other times once it is written to again: no file system's clock is coarser."""
_verified: Final = Remembered[tuple[FileIdentity, str]](4096)
"""Files whose tensors were found to be those of their digest."""


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
    def table(self) -> TensorTable:
        """Its tensors, not checked against anything."""
        return self._file.table

    def read(self) -> AdapterTensors:
        """Read into memory, since a mapped file that somebody cuts short would end the server.

        Its digest is worked out unless that was done before, and nobody has written to the file since.

        Raises:
            AdapterError: it cannot be read, or its tensors are not those that its digest is of.
        """
        now = time.time_ns()
        try:
            tensors = self._file.read_tensors()
            identity = self._file.identity
        except (OSError, SafetensorsError) as error:
            raise _unreadable(self._path, error) from error
        is_settled = (
            identity == self._file.opened and now - max(identity.modified_ns, identity.changed_ns) > _SETTLED_NS
        )
        fact = (identity, self.manifest.digest)
        if not is_settled or fact not in _verified:
            if digest_of(tensors) != self.manifest.digest:
                raise AdapterError(f"{self._path} was altered: its tensors are not those of its digest; {REPACK}")
            if is_settled:
                _verified.add(fact)
        return AdapterTensors(self.manifest, tensors)

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
    """SHA-256 of a line that says each tensor's name, type and shape, and of their bytes, as `write_packed` lays them."""
    if isinstance(arrays, Tensors) and arrays.table.is_as_written:
        digest = hashlib.sha256(_line(arrays.table))
        digest.update(arrays.content().data)
        return digest.hexdigest()
    names = written_order(arrays)
    digest = hashlib.sha256(_line_of(names, headers_of(arrays)))
    for name in names:
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@lru_cache(maxsize=16)
def _line(table: TensorTable) -> bytes:
    return _line_of(table.names, table.headers)


def _line_of(names: Sequence[str], headers: Mapping[str, Header]) -> bytes:
    return json.dumps([[name, *headers[name]] for name in names]).encode() + b"\n"


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
