"""Schemas from a directory: CustomResourceDefinitions as YAML, or openAPIV3Schemas as JSON named KIND-GROUP-VERSION.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from trierarch.builder.errors import ConfigError
from trierarch.kserve.checks.schema import Schema

_FILE_NAME: Final = re.compile(r"(?P<kind>[a-z]+)-(?P<group>[a-z0-9.-]+)-(?P<version>v[0-9]+(?:(?:alpha|beta)[0-9]+)?)")


def read_crds(directory: Path) -> tuple[Schema, ...]:
    """Every schema in `directory` and below, by path; of two of the same kind and version both are kept.

    Raises:
        ConfigError: it is no directory, holds none, or a file cannot be read.
    """
    if not directory.is_dir():
        raise ConfigError(f"--crds is {str(directory)!r}: no directory is there; name one with CRDs as YAML or JSON")
    paths = sorted(path for path in directory.rglob("*") if path.suffix in (".json", ".yaml", ".yml"))
    found = tuple(schema for path in paths for schema in _read(path, directory))
    if not found:
        raise ConfigError(
            f"--crds is {str(directory)!r}: no CRD is in it; put CustomResourceDefinitions there, as YAML, or their "
            "openAPIV3Schema as KIND-GROUP-VERSION.json"
        )
    return found


def _read(path: Path, root: Path) -> Iterator[Schema]:
    source = str(path.parent.relative_to(root.parent))
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            for document in yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
                yield from _of_crd(document, source)
            return
        document = json.loads(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); mend it, or take it out of --crds") from error
    match = _FILE_NAME.fullmatch(path.stem)
    if match is not None and isinstance(document, dict) and "properties" in document:
        yield Schema(f"{match['group']}/{match['version']}", match["kind"], source, document)
    else:
        yield from _of_crd(document, source)


def _of_crd(document: Any, source: str) -> Iterator[Schema]:
    if not isinstance(document, dict) or document.get("kind") != "CustomResourceDefinition":
        return
    spec = document["spec"]
    for version in spec["versions"]:
        schema = version.get("schema", {}).get("openAPIV3Schema")
        if version.get("served", True) and schema:
            yield Schema(f"{spec['group']}/{version['name']}", spec["names"]["kind"], source, schema)
