"""Opens an engine of TensorRT-LLM: checked by names first, so that nothing is imported that could not run it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import EngineManifest
from trierarch.builder.tensorrt_llm.compatibility import check_compatible, installed
from trierarch.python_backend.adapters.cache import AdapterCache
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.adapters.pool import AdapterPool
from trierarch.python_backend.adapters.registry import AdapterRegistry
from trierarch.python_backend.executors.tensorrt_llm.abilities import abilities_of
from trierarch.python_backend.executors.tensorrt_llm.arguments import with_host_cache
from trierarch.python_backend.executors.tensorrt_llm.disk_adapter import DiskAdapters
from trierarch.python_backend.executors.tensorrt_llm.executor import TensorRTLLMExecutor
from trierarch.python_backend.executors.tensorrt_llm.library import Library
from trierarch.python_backend.executors.tensorrt_llm.release import release_of


def open_tensorrt_llm(
    engine: Path, manifest: EngineManifest, directories: AdapterDirectories | None, host_cache_bytes: int = 0
) -> TensorRTLLMExecutor:
    """Load an engine, whose files were verified, and serve it.

    directories: of its adapters; None where it takes none. host_cache_bytes: of host memory for blocks that its KV cache has
    no room for.

    Raises:
        EngineError: it has no record of TensorRT-LLM, or what is installed cannot run it.
        ResourceError: the GPU has no room for it.
    """
    record = manifest.tensorrt_llm
    if record is None:
        raise EngineError(
            f"{engine.name}: its manifest has no record of TensorRT-LLM; rebuild the engine with: trierarch build "
            "--target tensorrt_llm"
        )
    record = with_host_cache(record, host_cache_bytes)
    release = release_of(record.version)
    check_compatible(manifest.name, record, installed())
    library = Library(record, release)
    adapters = None
    if directories is not None and manifest.lora is not None:
        disk = DiskAdapters(manifest.architecture)
        pool = AdapterPool(AdapterCache(manifest.lora.host_bytes, disk.arrange), manifest.lora.max_adapters)
        adapters = AdapterRegistry(directories, pool), disk
    try:
        return TensorRTLLMExecutor(manifest, abilities_of(record), library, partial(library.open, engine), adapters)
    except BaseException:
        if adapters is not None:
            adapters[1].close()
        raise
