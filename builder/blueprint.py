"""Blueprint: an engine that is decided, and not yet written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.manifest import MANIFEST_NAME, WEIGHTS_NAME, EngineManifest, FileDigest
from trierarch.builder.progress import Progress
from trierarch.builder.staging import write_file
from trierarch.builder.weights import Weight
from trierarch.builder.weights_file import file_size, write_weights


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What goes into an engine's directory."""

    checkpoint: Checkpoint
    manifest: EngineManifest
    """Its `files` are filled in once they are written."""
    weights: Sequence[Weight]
    small_files: Mapping[str, bytes]
    """Path relative to the engine -> content, of every file but the weights and the manifest."""

    @property
    def num_bytes(self) -> int:
        """Bytes that `write` will write, but for the manifest."""
        return file_size(self.weights) + sum(map(len, self.small_files.values()))

    def write(self, directory: Path, progress: Progress, stage: str = "weights") -> EngineManifest:
        """Write every file into an empty directory; `stage` is what `progress` calls it. Returns the final manifest.

        Raises:
            CheckpointError: a tensor cannot be read.
            ConfigError: a tensor cannot be quantised.
            OSError: the disk is full or cannot be written.
        """
        files = {WEIGHTS_NAME: write_weights(directory / WEIGHTS_NAME, self.weights, self.checkpoint, progress, stage)}
        for name, content in self.small_files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            write_file(directory / name, content)
            files[name] = FileDigest(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        manifest = self.manifest.model_copy(update={"files": files})
        write_manifest(directory, manifest)
        return manifest


def write_manifest(directory: Path, manifest: EngineManifest) -> None:
    """Write the file that makes a directory an engine.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    write_file(directory / MANIFEST_NAME, manifest.to_json().encode())
