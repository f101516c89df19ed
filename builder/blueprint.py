"""Blueprint: an engine that is decided, and not yet written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trierarch.builder.bundled_adapter import BundledAdapter
from trierarch.builder.manifest import MANIFEST_NAME, WEIGHTS_NAME, EngineManifest, FileDigest
from trierarch.builder.progress import DraftProgress, Progress
from trierarch.builder.staging import write_file
from trierarch.builder.weights_file import WeightsFile

DRAFT_FOLDER: Final = "draft"
"""Where an engine holds the one that drafts for it."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What goes into an engine's directory."""

    manifest: EngineManifest
    """Its `files` are filled in once they are written."""
    weights: WeightsFile
    small_files: Mapping[str, bytes]
    """Path relative to the engine -> content, of every file but the weights, the manifest, the adapters and the draft's."""
    draft: Blueprint | None = None
    """Of the engine in DRAFT_FOLDER."""
    adapters: tuple[BundledAdapter, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes that `write` will write, but for the manifests."""
        own = self.weights.num_bytes + sum(map(len, self.small_files.values()))
        adapters = sum(adapter.num_bytes for adapter in self.adapters)
        return own + adapters + (0 if self.draft is None else self.draft.num_bytes)

    def write(self, directory: Path, progress: Progress, stage: str = "weights") -> EngineManifest:
        """Write every file into an empty directory; `stage` is what `progress` calls it. Returns the final manifest.

        Raises:
            AdapterError: an adapter cannot be read, or does not fit.
            CheckpointError: a tensor cannot be read.
            ConfigError: a tensor cannot be quantised.
            EngineError: weights to be copied were altered or cannot be read.
            OSError: the disk is full or cannot be written.
        """
        files = {WEIGHTS_NAME: self.weights.write(directory / WEIGHTS_NAME, progress, stage)}
        for name, content in self.small_files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            write_file(directory / name, content)
            files[name] = _digest(content)
        if self.draft is not None:
            (directory / DRAFT_FOLDER).mkdir()
            draft = self.draft.write(directory / DRAFT_FOLDER, DraftProgress(progress))
            files |= {f"{DRAFT_FOLDER}/{name}": digest for name, digest in draft.files.items()}
            files[f"{DRAFT_FOLDER}/{MANIFEST_NAME}"] = _digest(_content(draft))
        if self.adapters:
            progress.stage("adapters", len(self.adapters), "adapters")
            weights = self.manifest.model_copy(update={"files": files})
            for adapter in self.adapters:
                files |= adapter.write(directory, weights)
                progress.advance(1)
        manifest = self.manifest.model_copy(update={"files": files})
        write_manifest(directory, manifest)
        return manifest


def write_manifest(directory: Path, manifest: EngineManifest) -> None:
    """Write the file that makes a directory an engine.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    write_file(directory / MANIFEST_NAME, _content(manifest))


def _content(manifest: EngineManifest) -> bytes:
    return manifest.to_json().encode()


def _digest(content: bytes) -> FileDigest:
    return FileDigest(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
