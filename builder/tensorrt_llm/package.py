"""Package: the files of an engine for TensorRT-LLM, decided and not yet written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trierarch.builder.manifest import FileDigest
from trierarch.builder.progress import Progress
from trierarch.builder.staging import write_file
from trierarch.builder.verify import digest_file
from trierarch.builder.weights_file import WeightsFile


@dataclass(frozen=True, slots=True)
class Package:
    """Paths relative to the engine -> what goes there."""

    weights: Mapping[str, WeightsFile] = field(default_factory=dict)
    small_files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes that `write` will write."""
        return sum(file.num_bytes for file in self.weights.values()) + sum(map(len, self.small_files.values()))

    def __or__(self, other: Package) -> Package:
        """Both; what is in both is the other's."""
        return Package({**self.weights, **other.weights}, {**self.small_files, **other.small_files})

    def within(self, folder: str) -> Package:
        """The same, in a folder."""
        return Package(
            {f"{folder}/{name}": file for name, file in self.weights.items()},
            {f"{folder}/{name}": content for name, content in self.small_files.items()},
        )

    def write(self, directory: Path, progress: Progress) -> dict[str, FileDigest]:
        """Write every file; returns path -> digest.

        Raises:
            CheckpointError: a tensor cannot be read.
            OSError: the disk is full or cannot be written.
        """
        files = {}
        for name, file in self.weights.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            files[name] = file.write(directory / name, progress, name)
        for name, content in self.small_files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(directory / name, content)
            files[name] = FileDigest(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        return files


def synced_files(folder: Path, name: str) -> dict[str, FileDigest]:
    """What a library wrote into `folder`, as files of an engine's folder `name`; they reach the disk first, as ours do.

    Raises:
        OSError: one cannot be read.
    """
    files = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[f"{name}/{path.relative_to(folder).as_posix()}"] = digest_file(path)
    return files
