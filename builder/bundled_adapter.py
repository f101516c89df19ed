"""BundledAdapter: an adapter that an engine brings along, packed when the engine's weights are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trierarch.builder.adapter import ADAPTER_SUFFIX
from trierarch.builder.adapter_source import AdapterSource, read_adapter
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import ADAPTERS_NAME, WEIGHTS_NAME, EngineManifest, FileDigest, Target
from trierarch.builder.packed_adapter import read_manifest, write_packed
from trierarch.builder.peft import WEIGHTS_FILE_NAME
from trierarch.builder.tensorrt_llm.compatibility import check_servable
from trierarch.builder.verify import digest_file


@dataclass(frozen=True, slots=True)
class BundledAdapter:
    """Where it comes from, and what it will be called."""

    name: str
    source: Path
    num_bytes: int
    """About as many as it will take."""

    def write(self, engine: Path, manifest: EngineManifest) -> dict[str, FileDigest]:
        """Pack it into `engine`, whose weights are there; its file and that file's digest, as the manifest has them.

        Raises:
            AdapterError: it cannot be read, or does not fit.
            OSError: the disk is full or cannot be written.
        """
        path = f"{ADAPTERS_NAME}/{self.name}{ADAPTER_SUFFIX}"
        with _about(self.name):
            packed = read_adapter(self.source, engine, manifest)
        (engine / ADAPTERS_NAME).mkdir(exist_ok=True)
        write_packed(packed, engine / path)
        return {path: digest_file(engine / path)}


def plan_adapters(sources: Mapping[str, Path], manifest: EngineManifest) -> tuple[BundledAdapter, ...]:
    """Name -> source, in the order of names; each is looked at before any weight is written.

    Raises:
        AdapterError: one cannot be opened, is for another model, or has what the target does not serve.
    """
    return tuple(_plan(name, source, manifest) for name, source in sorted(sources.items()))


def _plan(name: str, source: Path, manifest: EngineManifest) -> BundledAdapter:
    is_torch = manifest.target is Target.TORCH
    unwritten = {WEIGHTS_NAME: FileDigest(num_bytes=0, sha256="0" * 64)} if is_torch else {}
    with _about(name):
        if source.is_dir():
            with AdapterSource.open(source, source, manifest.model_copy(update={"files": unwritten})) as opened:
                found = opened.manifest
            num_bytes = (source / WEIGHTS_FILE_NAME).stat().st_size
        else:
            found = read_manifest(source)
            num_bytes = source.stat().st_size
        if not is_torch:
            check_servable(found)
    return BundledAdapter(name, source, num_bytes)


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Errors within say which adapter they are about."""
    try:
        yield
    except AdapterError as error:
        raise AdapterError(f"adapter {name!r}: {error}") from error
