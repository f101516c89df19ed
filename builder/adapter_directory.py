"""A directory of adapters: what is in it, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from trierarch.builder.adapter import ADAPTER_SUFFIX, NAME_PATTERN
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import ADAPTERS_NAME, MANIFEST_NAME
from trierarch.builder.peft_config import CONFIG_NAME


def adapters_in(directory: Path) -> Iterator[tuple[str, Path]]:
    """(name, packed file or PEFT directory), by name; of an engine, those that it brings along.

    Raises:
        AdapterError: the directory cannot be read.
    """
    if (directory / MANIFEST_NAME).is_file():
        directory = directory / ADAPTERS_NAME
        if not directory.exists():
            return
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise AdapterError(
            f"{directory} cannot be read ({error.strerror or error}); name a directory of adapters or an engine"
        ) from error
    for path in paths:
        is_peft = (path / CONFIG_NAME).is_file()
        name = path.name if is_peft else path.name.removesuffix(ADAPTER_SUFFIX)
        is_packed = path.name.endswith(ADAPTER_SUFFIX) and path.is_file()
        if (is_peft or is_packed) and re.fullmatch(NAME_PATTERN, name):
            yield name, path


def packed_path(directory: Path, name: str) -> Path:
    """Where the packed adapter of a valid name lies, if there is one."""
    return directory / f"{name}{ADAPTER_SUFFIX}"
