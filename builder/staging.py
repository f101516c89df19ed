"""A directory appears whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.builder.manifest import MANIFEST_NAME


@contextmanager
def staged_directory(output: Path, num_bytes: int, overwrite: bool) -> Iterator[Path]:
    """A new sibling of `output` that takes its place when the block ends well and vanishes when it does not.

    `num_bytes` is what the block will write, here and beside. What ends the block badly may be any exception, KeyboardInterrupt and
    SystemExit included. With `overwrite`, an engine at `output` is replaced at the last moment; it stays as it is if
    the block fails.

    Raises:
        ConfigError: something is at `output` that may not be replaced.
        ResourceError: the disk is full or cannot be written.
    """
    output = Path(os.path.abspath(output))
    _check_replaceable(output, overwrite)
    staging = output.with_name(f".{output.name}.{secrets.token_hex(4)}.building")
    missing_parents = [parent for parent in output.parents if not parent.exists()]
    try:
        staging.mkdir(parents=True)
        _check_disk_space(output.parent, num_bytes)
        yield staging
        for directory, _, _ in os.walk(staging):
            _sync_directory(Path(directory))
        replace(staging, output)
        _sync_directory(output.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"the disk of {output.parent} is full: the build needs {num_bytes} bytes; "
                "free some space or choose another --output"
            ) from error
        raise ResourceError(
            f"{output} cannot be written ({error.strerror or error}); choose another --output"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not output.exists():
            with suppress(OSError):
                for parent in missing_parents:
                    parent.rmdir()


def write_file(path: Path, content: bytes) -> None:
    """Write a file through to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _check_replaceable(output: Path, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    is_directory = output.is_dir() and not output.is_symlink()
    if is_directory and not any(output.iterdir()):
        return
    if not is_directory or not (output / MANIFEST_NAME).is_file():
        raise ConfigError(
            f"output is {str(output)!r}: something that is not an engine is there; choose another --output"
        )
    if not overwrite:
        raise ConfigError(f"output is {str(output)!r}: an engine is there already; choose another, or --overwrite it")


def _check_disk_space(directory: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise ResourceError(
            f"the build needs {num_bytes} bytes and the disk of {directory} has {free} free; "
            f"free {num_bytes - free} more or choose another --output"
        )


def replace(staging: Path, output: Path) -> None:
    """Rename directory `staging` to `output`; what is there makes way first and returns if that fails."""
    old = staging.with_suffix(".replaced")
    try:
        if output.exists():
            os.rename(output, old)
        os.rename(staging, output)
    except BaseException:
        if old.exists() and not output.exists():
            os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
