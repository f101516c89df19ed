"""Whether an engine may run here, decided before any weight is read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from trierarch.builder import machine
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import MANIFEST_NAME, DrafterKind, EngineManifest, FileDigest, Flow, Target

_REBUILD: Final = "rebuild the engine with: trierarch build"
_READ_BYTES: Final = 16 << 20


def verify(engine: Path, digests: bool = False) -> EngineManifest:
    """Check an engine, and its draft, against its manifest and against this machine; `digests` reads every byte.

    Raises:
        EngineError: not an engine, incomplete, altered, or foreign to this version or machine.
    """
    manifest = EngineManifest.load(engine)
    _check_machine(manifest)
    _check_tensorrt_llm(engine, manifest)
    for name, digest in manifest.files.items():
        _check_file(engine, name, digest, digests)
    _check_draft(engine, manifest)
    return manifest


def digest_file(path: Path) -> FileDigest:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    num_bytes = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            num_bytes += len(piece)
    return FileDigest(num_bytes=num_bytes, sha256=digest.hexdigest())


def _check_machine(manifest: EngineManifest) -> None:
    lacking = [flag for flag in manifest.requires.cpu_flags if flag not in machine.cpu_flags()]
    if lacking:
        raise EngineError(f"engine {manifest.name!r} needs a CPU with {', '.join(lacking)}; {_REBUILD} on this machine")
    device = manifest.requires.device
    if device not in ("any", "cpu") and device not in machine.cuda_architectures():
        here = ", ".join(machine.cuda_architectures()) or "no CUDA device"
        raise EngineError(
            f"engine {manifest.name!r} was built for {device}, and here is {here}; {_REBUILD} on this machine"
        )


def _check_tensorrt_llm(engine: Path, manifest: EngineManifest) -> None:
    """An engine for TensorRT-LLM says how it is opened, and has what is opened so."""
    record = manifest.tensorrt_llm
    if (record is None) == (manifest.target is Target.TENSORRT_LLM):
        raise EngineError(f"{engine}: target is {manifest.target.value!r}, and tensorrt_llm says otherwise; {_REBUILD}")
    if record is None:
        return
    needed = [f"{record.model}/config.json"]
    if record.flow is Flow.ENGINE:
        suffix = "safetensors" if record.compiled_by is None else "engine"
        count = record.tensor_parallel_size * record.pipeline_parallel_size
        needed += [f"{record.model}/rank{rank}.{suffix}" for rank in range(count)]
    for name in needed:
        if name not in manifest.files:
            raise EngineError(f"{engine}: files has no {name}, which TensorRT-LLM opens; {_REBUILD}")


def _check_draft(engine: Path, manifest: EngineManifest) -> None:
    """The draft's files are among the engine's own, and checked with them: the two manifests only have to agree."""
    speculation = manifest.speculation
    if speculation is None:
        return
    folder = speculation.draft_engine
    nested = [kind for kind in speculation.drafters if kind.has_engine]
    if len(nested) != (folder is not None):
        raise EngineError(f"{engine}: drafters and draft_engine of its speculation contradict each other; {_REBUILD}")
    if folder is None:
        return
    if f"{folder}/{MANIFEST_NAME}" not in manifest.files:
        raise EngineError(f"{engine}: files has no {folder}/{MANIFEST_NAME}, the manifest of its draft; {_REBUILD}")
    draft = EngineManifest.load(engine / folder)
    _check_machine(draft)
    kind = DrafterKind.DRAFT_MODEL if draft.head is None else draft.head.kind
    if kind is not nested[0]:
        raise EngineError(f"{engine}: its speculation names {nested[0]}, and {folder} is for {kind}; {_REBUILD}")
    for name, digest in draft.files.items():
        if manifest.files.get(f"{folder}/{name}") != digest:
            raise EngineError(f"{engine}: {folder}/{name} is not the file its draft was built with; {_REBUILD}")


def _check_file(engine: Path, name: str, expected: FileDigest, digests: bool) -> None:
    path = engine / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise EngineError(f"{engine}: files names {name!r}, which lies outside the engine; {_REBUILD}")
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise EngineError(f"{path} is missing; {_REBUILD}")
        if size != expected.num_bytes:
            raise EngineError(f"{path} has {size} bytes, its manifest says {expected.num_bytes}; {_REBUILD}")
        if digests and digest_file(path) != expected:
            raise EngineError(f"{path} was altered: its SHA-256 is not the manifest's; {_REBUILD}")
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror or error}); {_REBUILD}") from error
