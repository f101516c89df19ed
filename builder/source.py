"""SOURCE to Checkpoint: a Hugging Face directory, a GGUF file, a hub id or `demo`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from trierarch.builder.checkpoint import PICKLED_SUFFIXES, Checkpoint
from trierarch.builder.demo import DEMO, find_demo
from trierarch.builder.errors import CheckpointError, ConfigError, ResourceError
from trierarch.builder.gguf_checkpoint import GgufCheckpoint
from trierarch.builder.pooling import POOLING_FILE
from trierarch.builder.progress import Progress
from trierarch.builder.safetensors_checkpoint import SafetensorsCheckpoint

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
_HUB_LEFT_OUT: Final = ("*/*", "consolidated*")
"""Copies of the same weights in other layouts."""


def open_checkpoint(model: str, progress: Progress, field: str = "model") -> Checkpoint:
    """Find the checkpoint that `model` names, downloading it where it is not here; errors call it `field`.

    Raises:
        CheckpointError: it is pickled, damaged or of an unknown kind.
        ConfigError: `model` names nothing.
        ResourceError: it must be downloaded and cannot be.
    """
    path, name = _locate(model, progress, field)
    progress.stage("checkpoint", None)
    if path.is_dir():
        return SafetensorsCheckpoint(path, name)
    if path.suffix != ".gguf":
        raise CheckpointError(f"{path.name} is not a GGUF file; for safetensors, name the directory they are in")
    return GgufCheckpoint(path, name)


def _locate(model: str, progress: Progress, field: str) -> tuple[Path, str | None]:
    """Where the checkpoint lies, and its name where the path does not tell it."""
    path = Path(model).expanduser()
    if path.suffix in PICKLED_SUFFIXES:
        raise CheckpointError(
            f"{path.name} is pickled, and reading it would run its code; take the checkpoint's safetensors or GGUF"
        )
    if os.path.exists(path):
        return path, None
    if model == DEMO:
        return find_demo(progress), None
    if _HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        return _download(model, progress, field), model
    raise ConfigError(
        f"{field} is {model!r}: no such directory or file; give a Hugging Face directory, a GGUF file, a hub id "
        f"(org/name) or {DEMO!r}"
    )


def _download(hub_id: str, progress: Progress, field: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ResourceError(
            f"{field} is {hub_id!r}: there is no such directory here, and downloading it needs huggingface_hub; "
            "install it with: pip install 'trierarch[hub]'"
        ) from None
    progress.stage(f"download {hub_id}", None)
    try:
        directory = snapshot_download(hub_id, allow_patterns=list(_HUB_FILES), ignore_patterns=list(_HUB_LEFT_OUT))
        # It lies in a folder, and those are left out; of the same revision, which a snapshot's directory is named for.
        snapshot_download(hub_id, revision=Path(directory).name, allow_patterns=[POOLING_FILE])
        return Path(directory)
    except Exception as error:  # the library's own errors and those of whatever carries its requests
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"{field} is {hub_id!r}: there is no such directory here, and the hub did not give it ({reason}); "
            "check the name and the network, or give a local directory"
        ) from error
