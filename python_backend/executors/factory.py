"""Opens the executor an engine was built for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import EngineManifest, Target
from trierarch.builder.verify import verify
from trierarch.python_backend.executors.collector import no_collections
from trierarch.python_backend.executors.loop import StepExecutor
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


def _open_torch(engine: Path, manifest: EngineManifest) -> StepExecutor:
    with no_collections():
        from trierarch.python_backend.executors.torch.runner import TorchRunner  # imports torch: a second

        runner = TorchRunner(engine, manifest)
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
