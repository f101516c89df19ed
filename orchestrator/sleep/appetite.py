"""What a server will take of memory, before any has been measured."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import MANIFEST_NAME, WEIGHTS_NAME, EngineManifest

ALLOWANCE_BYTES: Final = 350 << 20
"""Of tritonserver and its stubs, beside weights and KV."""


def appetite(path: Path) -> int:
    """Bytes for an engine, or the engines of a repository: weights, a KV cache of fixed size, and an allowance."""
    manifests = [path] if (path / MANIFEST_NAME).is_file() else [place.parent for place in _engines(path)]
    return ALLOWANCE_BYTES + sum(_of_engine(engine) for engine in {place.resolve() for place in manifests})


def _engines(repository: Path) -> list[Path]:
    return list(repository.glob(f"*/*/engine/{MANIFEST_NAME}"))


def _of_engine(engine: Path) -> int:
    try:
        manifest = EngineManifest.load(engine)
    except EngineError:
        return 0  # it will be told when it is started
    weights = manifest.files[WEIGHTS_NAME].num_bytes if WEIGHTS_NAME in manifest.files else 0
    return weights + (manifest.kv_cache.num_bytes or 0)
