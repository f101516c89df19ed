"""Opens the executor an engine was built for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trierarch.builder.errors import EngineError
from trierarch.builder.machine import cuda_architectures
from trierarch.builder.manifest import EngineManifest, Target
from trierarch.builder.verify import verify
from trierarch.python_backend.executors.collector import no_collections
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.executors.runner import Runner
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.scheduler import Scheduler


def open_executor(engine: Path) -> StepExecutor:
    """Check an engine, load it and start its loop.

    Raises:
        EngineError: the engine is corrupt, or foreign to this version, machine or set of executors.
        ResourceError: the machine has no room for the weights or the KV cache.
    """
    manifest = verify(engine)
    if manifest.target not in _OPENERS:
        raise EngineError(
            f"{engine.name}: no executor here runs target {manifest.target}; rebuild it with --target torch"
        )
    return _OPENERS[manifest.target](engine, manifest)


def open_runner(engine: Path, manifest: EngineManifest) -> Runner:
    """Load an engine that was verified: its compiled kernels, or torch where it has none or a CUDA device is to be used.

    Raises:
        EngineError: the weights or the kernels are missing, corrupt or not what the manifest says.
        ResourceError: the machine has no room for the weights or the KV cache.
    """
    with no_collections():
        if manifest.kernels is not None and not _takes_cuda(manifest):
            from trierarch.python_backend.executors.cpu.runner import CpuRunner

            return CpuRunner(engine, manifest)
        from trierarch.python_backend.executors.torch.runner import TorchRunner  # imports torch: a second

        return TorchRunner(engine, manifest)


def _takes_cuda(manifest: EngineManifest) -> bool:
    """Whether torch would find a CUDA device that the engine may use; torch is asked only if the driver has one."""
    if manifest.requires.device == "cpu" or not cuda_architectures():
        return False
    import torch

    return torch.cuda.is_available()


def _open_torch(engine: Path, manifest: EngineManifest) -> StepExecutor:
    runner = open_runner(engine, manifest)
    limits, kv_cache = manifest.limits, manifest.kv_cache
    config = SchedulerConfig(
        max_batch_size=limits.max_batch_size,
        max_seq_len=limits.max_seq_len,
        max_num_tokens=limits.max_num_tokens,
        max_queue_size=limits.max_queue_size,
    )
    kv = KVCacheManager(runner.num_blocks, kv_cache.block_size, kv_cache.enable_prefix_caching)
    scheduler = Scheduler(config, kv, manifest.tokens.eos)
    return StepExecutor(scheduler, runner, manifest.architecture.vocab_size)


_OPENERS: dict[Target, Callable[[Path, EngineManifest], StepExecutor]] = {Target.TORCH: _open_torch}
