"""Opens the executor an engine was built for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trierarch.builder.errors import ConfigError, EngineError
from trierarch.builder.machine import cuda_architectures
from trierarch.builder.manifest import ADAPTERS_NAME, DrafterKind, EngineManifest, Head, Speculation, Target
from trierarch.builder.verify import verify
from trierarch.python_backend.adapters.cache import AdapterCache, ArrangeDraft
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.adapters.draft_adapters import DraftAdapters
from trierarch.python_backend.adapters.pool import AdapterPool
from trierarch.python_backend.adapters.registry import AdapterRegistry
from trierarch.python_backend.executors.collector import no_collections
from trierarch.python_backend.executors.draft_model import DraftModel
from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.executors.head_drafter import HeadDrafter, num_scratch_blocks
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.executors.offload.config import NO_OFFLOAD, OffloadConfig
from trierarch.python_backend.executors.offload.mover import Mover
from trierarch.python_backend.executors.offload.opening import open_tiers
from trierarch.python_backend.executors.prefix_file import PrefixFile
from trierarch.python_backend.executors.runner import LeadRunner
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
from trierarch.python_backend.speculation.suffix import SuffixDrafter

if TYPE_CHECKING:
    import torch


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
        ResourceError: the machine has no room for the weights or the KV cache.
    """
    with no_collections():
        if manifest.parallel is not None:
            from trierarch.python_backend.executors.parallel.runner import ParallelRunner  # imports torch

            return ParallelRunner(engine, manifest, uniforms, num_blocks, taps)
        if manifest.kernels is not None and not _takes_cuda(manifest):
            from trierarch.python_backend.executors.cpu.runner import CpuRunner

            return CpuRunner(engine, manifest, uniforms, num_blocks, taps)
        from trierarch.python_backend.executors.torch.runner import TorchRunner  # imports torch: a second

        return TorchRunner(engine, manifest, uniforms=uniforms, num_blocks=num_blocks, taps=taps)


def _takes_cuda(manifest: EngineManifest) -> bool:
    """Whether torch would find a CUDA device that the engine may use; torch is asked only if the driver has one."""
    if manifest.requires.device == "cpu" or not cuda_architectures():
        return False
    import torch

    return torch.cuda.is_available()


def _open_torch(
    engine: Path,
    manifest: EngineManifest,
    allotment: Allotment | None,
    adapter_directories: tuple[Path, ...],
    prefixes: PrefixFile | None,
    offload: OffloadConfig,
) -> StepExecutor:
    directories = open_directories(engine, manifest, adapter_directories)  # before the weights: it fails at once
    uniforms = Uniforms()
    draft = manifest.load_draft(engine)
    taps = () if draft is None or draft.head is None else draft.head.taps
    runner = open_runner(engine, manifest, uniforms, taps=taps)
    limits, kv_cache = manifest.limits, manifest.kv_cache
    config = SchedulerConfig(
        max_batch_size=limits.max_batch_size,
        max_seq_len=limits.max_seq_len,
        max_num_tokens=limits.max_num_tokens,
        max_queue_size=limits.max_queue_size,
    )
    vocab_size = manifest.architecture.vocab_size
    models, arrange_draft = _nested_drafters(engine, manifest, draft, runner, uniforms, adapter_directories)
    tiers = open_tiers(offload, manifest, runner, _head_of(models))[0] if offload.is_on else None
    kv = KVCacheManager(
        runner.num_blocks, kv_cache.block_size, kv_cache.enable_prefix_caching, None if tiers is None else tiers.offload
    )
    pool = None
    if manifest.lora is not None:
        pool = AdapterPool(
            AdapterCache(manifest.lora.host_bytes, runner.arrange, arrange_draft), manifest.lora.max_adapters
        )
    registry = None if directories is None or pool is None else AdapterRegistry(directories, pool)
    guides = Guides.of(engine, vocab_size, manifest.tokens.eos)
    verdicts = None if guides is None else guides.compiler
    scheduler = Scheduler(config, kv, manifest.tokens.eos, adapters=pool, guides=verdicts)
    speculator = Speculator(manifest.speculation, vocab_size, _text_drafters(manifest.speculation), models, allotment)
    # A head keeps keys and values of its own in the target's blocks.
    has_head = draft is not None and draft.head is not None
    at_end = _keep(prefixes, kv, runner) if prefixes is not None and not has_head else lambda: None
    mover = None if tiers is None else Mover(kv, tiers.carrier)
    executor = StepExecutor(scheduler, runner, vocab_size, speculator, registry, guides, at_end, mover)
    _watch(runner, manifest, executor)
    return executor


def _head_of(models: list[ModelDrafter]) -> HeadDrafter[Any] | None:
    return next((model for model in models if isinstance(model, HeadDrafter)), None)


def _watch(runner: LeadRunner, manifest: EngineManifest, executor: StepExecutor) -> None:
    """Let the executor hear at once where a runner of several processes loses one."""
    if manifest.parallel is not None:
        from trierarch.python_backend.executors.parallel.runner import ParallelRunner

        assert isinstance(runner, ParallelRunner)
        runner.watch(executor.lose)


def _keep(prefixes: PrefixFile, kv: KVCacheManager, runner: LeadRunner) -> Callable[[], object]:
    """Restore what was saved; what saves it again."""
    from trierarch.python_backend.executors.cpu.runner import CpuRunner

    if not isinstance(runner, CpuRunner):
        return lambda: None
    arrays = runner.kv_arrays.arrays
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


def _nested_drafters(
    engine: Path,
    manifest: EngineManifest,
    draft: EngineManifest | None,
    runner: LeadRunner,
    uniforms: Uniforms,
    adapter_directories: tuple[Path, ...],
) -> tuple[list[ModelDrafter], ArrangeDraft | None]:
    """The engine's draft, if it has one, over as many blocks as the engine itself; and how it gets its adapters."""
    if draft is None:
        return [], None
    assert manifest.speculation is not None
    assert manifest.speculation.draft_engine is not None
    folder = engine / manifest.speculation.draft_engine
    if draft.head is not None:
        return [open_head(folder, draft, draft.head, runner, manifest.speculation.max_draft_tokens)], None
    own = open_runner(folder, draft, uniforms, runner.num_blocks)
    kv = KVCacheManager(runner.num_blocks, draft.kv_cache.block_size, draft.kv_cache.enable_prefix_caching)
    drafter = DraftModel(own, kv, draft.tokens.eos, draft.limits.max_num_tokens)
    if manifest.lora is None or draft.lora is None:
        return [drafter], None
    adapters = engine / ADAPTERS_NAME
    directories = AdapterDirectories(((adapters,) if adapters.is_dir() else ()) + adapter_directories, folder, draft)
    is_same = draft.architecture == manifest.architecture
    return [drafter], DraftAdapters(own.arrange, directories, is_same)


def open_head(
    folder: Path, manifest: EngineManifest, head: Head, runner: LeadRunner, max_draft_tokens: int
) -> HeadDrafter[torch.Tensor]:
    """Load the head in `folder` where its target computes, and let it follow `runner`, which was opened with its taps.

    Raises:
        EngineError: the weights are missing, corrupt or not what the manifest says.
        ResourceError: the machine has no room for the weights or the keys and values.
    """
    import torch

    from trierarch.python_backend.executors.torch.device import prepare_cpu
    from trierarch.python_backend.executors.torch.head_model import TorchHead

    device = torch.device(runner.device)
    if device.type == "cpu":
        prepare_cpu()
    limits, block_size = manifest.limits, manifest.kv_cache.block_size
    num_scratch = num_scratch_blocks(limits.max_batch_size, max_draft_tokens, block_size)
    model = TorchHead(folder, manifest, runner.num_blocks + num_scratch, device)
    drafter = HeadDrafter(head.kind, model, runner.num_blocks, block_size, manifest.tokens.eos)
    runner.lead(drafter)
    return drafter


_Opener = Callable[
    [Path, EngineManifest, Allotment | None, tuple[Path, ...], PrefixFile | None, OffloadConfig], Executor
]
_OPENERS: dict[Target, _Opener] = {Target.TORCH: _open_torch, Target.TENSORRT_LLM: _open_tensorrt_llm}
