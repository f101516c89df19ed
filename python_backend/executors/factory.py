"""Opens the executor an engine was built for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trierarch.builder.errors import ConfigError, EngineError
from trierarch.builder.machine import takes_gpu
from trierarch.builder.manifest import ADAPTERS_NAME, DrafterKind, EngineManifest, Speculation, Target
from trierarch.builder.verify import verify
from trierarch.python_backend.adapters.cache import AdapterCache, ArrangeDraft
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.adapters.draft_adapters import DraftAdapters
from trierarch.python_backend.adapters.pool import AdapterPool
from trierarch.python_backend.adapters.registry import AdapterRegistry
from trierarch.python_backend.executors.collector import no_collections
from trierarch.python_backend.executors.draft_model import DraftModel
from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.executors.head_drafter import HeadDrafter, open_head
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.executors.offload.config import NO_OFFLOAD, OffloadConfig
from trierarch.python_backend.executors.offload.mover import Mover
from trierarch.python_backend.executors.offload.opening import Tiers, open_tiers
from trierarch.python_backend.executors.prefix_file import PrefixFile
from trierarch.python_backend.executors.runner import LaunchingRunner, LeadRunner
from trierarch.python_backend.executors.sampling.uniforms import Uniforms
from trierarch.python_backend.guides.guides import Guides
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.scheduler import Scheduler
from trierarch.python_backend.speculation.allotment import Allotment
from trierarch.python_backend.speculation.drafter import Drafter, ModelDrafter
from trierarch.python_backend.speculation.live_text import LiveTexts
from trierarch.python_backend.speculation.prompt_lookup import PromptLookupDrafter
from trierarch.python_backend.speculation.speculator import Speculator
from trierarch.python_backend.speculation.stretches import Stretches
from trierarch.python_backend.speculation.suffix import SuffixDrafter

logger = logging.getLogger(__name__)


def open_executor(
    engine: Path,
    allotment: Allotment | None = None,
    adapter_directories: tuple[Path, ...] = (),
    prefixes: PrefixFile | None = None,
    offload: OffloadConfig = NO_OFFLOAD,
) -> Executor:
    """Check an engine, load it and start its loop. `allotment` None adapts how far drafts are followed.

    adapter_directories: where adapters are looked for, after those that the engine brings along.
    prefixes: where cached prefixes come from, and go to at the end; only compiled engines without a head keep them.
    offload: where they go when the KV cache has no room for them.

    Raises:
        ConfigError: one of `adapter_directories` is not there, or the engine takes no adapters; or `offload` cannot be.
        EngineError: the engine is corrupt, or foreign to this version, machine or set of executors.
        ResourceError: the machine has no room for the weights or the KV cache.
    """
    manifest = verify(engine)
    if manifest.head is not None:
        raise EngineError(f"{engine.name}: it is a head, which only guesses for the engine it lies in; open that one")
    return _OPENERS[manifest.target](engine, manifest, allotment, adapter_directories, prefixes, offload)


def open_runner(
    engine: Path,
    manifest: EngineManifest,
    uniforms: Uniforms | None = None,
    num_blocks: int | None = None,
    taps: tuple[int, ...] = (),
) -> LeadRunner:
    """Load an engine that was verified: its compiled kernels, or torch where it has none, where a CUDA device is to be used,
    or where it is split over several.

    uniforms, num_blocks, taps: as the runners take them.

    Raises:
        EngineError: the weights or the kernels are missing, corrupt or not what the manifest says.
        ResourceError: the machine has no room for the weights or the KV cache, or a GPU that torch cannot use.
    """
    with no_collections():
        if manifest.parallel is not None:
            from trierarch.python_backend.executors.parallel.runner import ParallelRunner  # imports torch

            return ParallelRunner(engine, manifest, uniforms, num_blocks, taps)
        if manifest.kernels is not None and not takes_gpu(manifest.requires.device):
            from trierarch.python_backend.executors.cpu.runner import CpuRunner

            return CpuRunner(engine, manifest, uniforms, num_blocks, taps)
        from trierarch.python_backend.executors.torch.runner import TorchRunner  # imports torch: a second

        return TorchRunner(engine, manifest, uniforms=uniforms, num_blocks=num_blocks, taps=taps)


def _open_torch(
    engine: Path,
    manifest: EngineManifest,
    allotment: Allotment | None,
    adapter_directories: tuple[Path, ...],
    prefixes: PrefixFile | None,
    offload: OffloadConfig,
) -> StepExecutor:
    directories = open_directories(engine, manifest, adapter_directories)  # before the weights: it fails at once
    limits, vocab_size = manifest.limits, manifest.architecture.vocab_size
    config = SchedulerConfig(
        max_batch_size=limits.max_batch_size,
        max_seq_len=limits.max_seq_len,
        max_num_tokens=limits.max_num_tokens,
        max_queue_size=limits.max_queue_size,
    )
    with ExitStack() as undo:
        loaded = _load(engine, manifest, offload, undo)
        runner = loaded.runner
        kv, mover = _cache(manifest, runner.num_blocks, loaded.tiers)
        models, arrange_draft = _model_drafters(engine, manifest, loaded, adapter_directories)
        pool = None
        if manifest.lora is not None:
            cache = AdapterCache(manifest.lora.host_bytes, runner.arrange, arrange_draft)
            pool = AdapterPool(cache, manifest.lora.max_adapters)
        registry = None if directories is None or pool is None else AdapterRegistry(directories, pool)
        guides = Guides.of(engine, vocab_size, manifest.tokens.eos)
        verdicts = None if guides is None else guides.compiler
        scheduler = Scheduler(config, kv, manifest.tokens.eos, adapters=pool, guides=verdicts)
        texts = _text_drafters(manifest.speculation)
        # A head goes on from every step's tokens.
        launcher = _launcher(runner) if loaded.head is None else None
        stretches = None if launcher is None else Stretches()
        speculator = Speculator(manifest.speculation, vocab_size, texts, models, allotment, stretches=stretches)
        at_end = _keep(prefixes, kv, manifest, loaded)
        executor = StepExecutor(scheduler, runner, vocab_size, speculator, registry, guides, at_end, mover, launcher)
        undo.pop_all()
    _watch(runner, manifest, executor)
    return executor


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What takes memory of an engine, and of the one that lies in it and guesses: that is a head, or a model of its own."""

    runner: LeadRunner
    tiers: Tiers | None
    draft: EngineManifest | None
    head: HeadDrafter[Any] | None
    draft_runner: LeadRunner | None
    draft_tiers: Tiers | None


def _load(engine: Path, manifest: EngineManifest, offload: OffloadConfig, undo: ExitStack) -> _Loaded:
    """undo: closes it all."""
    uniforms = Uniforms()
    draft = manifest.load_draft(engine)
    taps = () if draft is None or draft.head is None else draft.head.taps
    runner = open_runner(engine, manifest, uniforms, taps=taps)
    undo.callback(runner.close)
    head = draft_runner = tiers = draft_tiers = its_draft = None
    if draft is not None:
        assert manifest.speculation is not None
        assert manifest.speculation.draft_engine is not None
        folder = engine / manifest.speculation.draft_engine
        if draft.head is not None:
            head = open_head(folder, draft, draft.head, runner, manifest.speculation.max_draft_tokens)
        else:
            draft_runner = open_runner(folder, draft, uniforms, runner.num_blocks)
            undo.callback(draft_runner.close)
            its_draft = draft, draft_runner
    if offload.is_on:
        tiers, draft_tiers = open_tiers(offload, manifest, runner, head, its_draft)
        for its in (tiers, draft_tiers):
            if its is not None:
                undo.callback(its.carrier.close)
    return _Loaded(runner, tiers, draft, head, draft_runner, draft_tiers)


def _cache(manifest: EngineManifest, num_blocks: int, tiers: Tiers | None) -> tuple[KVCacheManager, Mover | None]:
    """The books of an engine's blocks, and what moves them between tiers, where there are any."""
    offload = None if tiers is None else tiers.offload
    kv_cache = manifest.kv_cache
    kv = KVCacheManager(num_blocks, kv_cache.block_size, kv_cache.enable_prefix_caching, offload)
    return kv, None if tiers is None else Mover(kv, tiers.carrier)


def _launcher(runner: LeadRunner) -> LaunchingRunner | None:
    """The runner, where steps are launched: a CPU computes for the host itself, and gains nothing."""
    return runner if isinstance(runner, LaunchingRunner) and runner.device != "cpu" else None


def _watch(runner: LeadRunner, manifest: EngineManifest, executor: StepExecutor) -> None:
    """Let the executor hear at once where a runner of several processes loses one."""
    if manifest.parallel is not None:
        from trierarch.python_backend.executors.parallel.runner import ParallelRunner

        assert isinstance(runner, ParallelRunner)
        runner.watch(executor.lose)


def _keep(
    prefixes: PrefixFile | None, kv: KVCacheManager, manifest: EngineManifest, loaded: _Loaded
) -> Callable[[], object]:
    """Restore what was saved; what saves it again."""
    from trierarch.python_backend.executors.cpu.runner import CpuRunner

    if prefixes is None:
        return lambda: None
    # A head keeps keys and values of its own in the target's blocks.
    if loaded.head is not None or not isinstance(loaded.runner, CpuRunner):
        logger.info(
            "%s has a head or is run by torch, and prefix_cache_directory keeps nothing of it: what outlives the process is "
            "what a kv_cache_disk_directory (--kv-disk-directory) has",
            manifest.name,
        )
        return lambda: None
    arrays = loaded.runner.kv_arrays.arrays
    prefixes.restore(kv, arrays)
    return lambda: prefixes.save(kv, arrays)


def _open_tensorrt_llm(
    engine: Path,
    manifest: EngineManifest,
    _: Allotment | None,
    adapter_directories: tuple[Path, ...],
    prefixes: PrefixFile | None,
    offload: OffloadConfig,
) -> Executor:
    """It keeps its own prefix cache, which nobody can save, and its own tier in host memory."""
    if offload.disk_directory is not None:
        raise ConfigError(
            f"kv_cache_disk_directory is {str(offload.disk_directory)!r}, and TensorRT-LLM keeps no blocks on disk: leave it out"
        )
    directories = open_directories(engine, manifest, adapter_directories)
    from trierarch.python_backend.executors.tensorrt_llm.opening import open_tensorrt_llm

    return open_tensorrt_llm(engine, manifest, directories, offload.host_bytes)


def open_directories(
    engine: Path, manifest: EngineManifest, adapter_directories: tuple[Path, ...]
) -> AdapterDirectories | None:
    """Where an engine's adapters are found; None where it takes none.

    Raises:
        ConfigError: see open_executor.
    """
    if manifest.lora is not None:
        return AdapterDirectories(adapter_directories, engine, manifest)
    if adapter_directories:
        raise ConfigError(
            f"adapter directory {str(adapter_directories[0])!r} is for an engine that takes no adapters: rebuild "
            f"{engine.name} with --max-adapters 1 or more, or name no directory"
        )
    return None


def _text_drafters(speculation: Speculation | None) -> list[Drafter]:
    kinds = () if speculation is None else speculation.drafters
    drafters: list[Drafter] = []
    texts = LiveTexts()
    if speculation is not None and DrafterKind.SUFFIX in kinds:
        drafters.append(SuffixDrafter(speculation.history_bytes, texts))
    if DrafterKind.PROMPT_LOOKUP in kinds:
        drafters.append(PromptLookupDrafter(texts))
    return drafters


def _model_drafters(
    engine: Path, manifest: EngineManifest, loaded: _Loaded, adapter_directories: tuple[Path, ...]
) -> tuple[list[ModelDrafter], ArrangeDraft | None]:
    """The engine's draft, if it has one, over as many blocks as the engine itself; and how it gets its adapters."""
    draft, runner = loaded.draft, loaded.draft_runner
    if loaded.head is not None:
        return [loaded.head], None
    if draft is None or runner is None:
        return [], None
    kv, mover = _cache(draft, runner.num_blocks, loaded.draft_tiers)
    drafter = DraftModel(runner, kv, draft.tokens.eos, draft.limits.max_num_tokens, mover)
    if manifest.lora is None or draft.lora is None:
        return [drafter], None
    assert manifest.speculation is not None
    assert manifest.speculation.draft_engine is not None
    adapters = engine / ADAPTERS_NAME
    searched = ((adapters,) if adapters.is_dir() else ()) + adapter_directories
    directories = AdapterDirectories(searched, engine / manifest.speculation.draft_engine, draft)
    is_same = draft.architecture == manifest.architecture
    return [drafter], DraftAdapters(runner.arrange, directories, is_same)


_Opener = Callable[
    [Path, EngineManifest, Allotment | None, tuple[Path, ...], PrefixFile | None, OffloadConfig], Executor
]
_OPENERS: dict[Target, _Opener] = {Target.TORCH: _open_torch, Target.TENSORRT_LLM: _open_tensorrt_llm}
