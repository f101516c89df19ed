"""What `trierarch serve PATH` is given: a model repository as it is, or an engine that is composed into one."""

from __future__ import annotations

from pathlib import Path

from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import MANIFEST_NAME
from trierarch.orchestrator.run_directory import RunDirectory


def repository_of(path: Path, run: RunDirectory) -> Path:
    """The repository at `path`, or one composed in `run` from the engine at `path`.

    Raises:
        ConfigError: `path` is neither.
        EngineError: the engine is corrupt or foreign to this machine.
        ResourceError: the disk is full.
    """
    if (path / MANIFEST_NAME).is_file():
        from trierarch.ensembles.compose import compose

        return compose(path, run.repository).path
    if path.is_dir() and any(path.glob("*/config.pbtxt")):
        return path
    raise ConfigError(
        f"PATH is {str(path)!r}: neither an engine nor a model repository; "
        "make one with: trierarch build, or: trierarch compose"
    )
