"""Manifests on disk: written whole or not at all, and read back."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.builder.staging import replace
from trierarch.kserve.objects.resource import Resource
from trierarch.kserve.render import KUSTOMIZATION, MARK

SUFFIXES: Final = (".yaml", ".yml", ".json")


def write_manifests(files: Mapping[str, str], output: Path) -> None:
    """Put `files` into `output`; what an earlier render left there is replaced.

    Raises:
        ConfigError: something else is at `output`.
        ResourceError: it cannot be written.
    """
    output = Path(os.path.abspath(output))
    _check_replaceable(output)
    staging = output.with_name(f".{output.name}.{secrets.token_hex(4)}.rendering")
    try:
        staging.mkdir(parents=True)
        for name, text in files.items():
            (staging / name).write_text(text, encoding="utf-8")
        replace(staging, output)
    except OSError as error:
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise ResourceError(f"{output} cannot be written ({why}); choose another --output") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_manifests(paths: Iterable[Path]) -> list[Resource]:
    """Every object in files, and in directories' files, in order; kustomizations are left out.

    Raises:
        ConfigError: a file is not there, cannot be read, or holds something else.
    """
    found: list[Resource] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} is not there; name files or directories of manifests")
        files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES) if path.is_dir() else [path]
        for file in files:
            found += [document for document in _documents(file) if document.get("kind") != "Kustomization"]
    if not found:
        raise ConfigError("no object is in what was named; name files or directories of manifests")
    return found


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        documents = [
            document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document is not None
        ]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML ({error}); mend it") from error
    listed = [item for document in documents for item in _items(document)]
    if not all(isinstance(item, dict) for item in listed):
        raise ConfigError(f"{path} holds something that is no object; mend it")
    return listed


def _items(document: Any) -> list[Any]:
    """The objects of a List, or the one object."""
    if isinstance(document, dict) and document.get("kind") == "List":
        return list(document.get("items") or [])
    return [document]


def _check_replaceable(output: Path) -> None:
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return
    kustomization = output / KUSTOMIZATION
    if not kustomization.is_file() or not kustomization.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise ConfigError(
            f"output is {str(output)!r}: something that trierarch deploy did not write is there; choose another --output"
        )
