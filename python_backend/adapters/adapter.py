"""Adapter: one version of one adapter, as requests name it."""

from __future__ import annotations

import weakref
from typing import Protocol

from trierarch.builder.adapter import AdapterManifest, AdapterTensors
from trierarch.builder.errors import AdapterError


class Source(Protocol):
    """Where a version's tensors come from: files that are open, so that it stays readable whatever becomes of their names."""

    @property
    def manifest(self) -> AdapterManifest:
        """What it is."""
        ...

    def read(self) -> AdapterTensors:
        """Its tensors, from disk.

        Raises:
            AdapterError: they are unreadable, or not what the manifest says.
        """
        ...

    def close(self) -> None:
        """Give the files back."""
        ...


class Adapter:
    """A version that was found under a name; requests that resolved it get it, also when the name means another by then.

    Its files stay open as long as somebody has this.
    """

    def __init__(self, name: str, source: Source, num_bytes: int = 0, folder: str = "") -> None:
        """`num_bytes`: about what its weights will take. `folder` is cut out of what errors say: it is no client's affair."""
        self.name = name
        self.manifest = source.manifest
        self.num_bytes = num_bytes
        self._source = source
        self._folder = folder
        weakref.finalize(self, source.close)

    @property
    def digest(self) -> str:
        """The identity that caches go by."""
        return self.manifest.digest

    def read(self) -> AdapterTensors:
        """Its tensors, from disk.

        Raises:
            AdapterError: they are unreadable, or not what the manifest says.
        """
        try:
            return self._source.read()
        except AdapterError as error:
            raise AdapterError(without_folder(error, self._folder)) from error


def without_folder(error: AdapterError, folder: str) -> str:
    """What `error` says, with the paths in `folder` relative to it."""
    return str(error).replace(f"{folder}/", "") if folder else str(error)
