"""Opens the tiers behind an engine's device cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors import machine
from trierarch.python_backend.executors.head_drafter import HeadDrafter
from trierarch.python_backend.executors.offload.array_copier import ArrayCopier, no_room
from trierarch.python_backend.executors.offload.block_copier import block_bytes_of
from trierarch.python_backend.executors.offload.block_files import check_room, file_bytes
from trierarch.python_backend.executors.offload.carrier import Carrier
from trierarch.python_backend.executors.offload.config import OffloadConfig
from trierarch.python_backend.executors.offload.share import Bounds, Share
from trierarch.python_backend.executors.runner import Runner
from trierarch.python_backend.kv.disk_tier import DiskTier
from trierarch.python_backend.kv.host_tier import HostTier
from trierarch.python_backend.kv.offload import Offload
from trierarch.python_backend.kv.payoff import MeasuredPayoff

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

_DRAFT_LOCK: Final = "lock.draft"


@dataclass(frozen=True, slots=True)
class Tiers:
    """The books of the tiers behind one cache, and what makes their copies."""

    offload: Offload
    carrier: Carrier


def open_tiers(
    config: OffloadConfig,
    manifest: EngineManifest,
    runner: Runner,
    head: HeadDrafter[Any] | None = None,
    draft: tuple[EngineManifest, Runner] | None = None,
) -> tuple[Tiers, Tiers | None]:
    """The tiers of a runner's blocks, in which a head that follows it has keys and values too; and those of its draft model,
    which has blocks of its own, where that caches prefixes. Both hold as many blocks, and together what `config` lends.

    Raises:
        ConfigError: the engine caches no prefixes, or the tiers hold no block or cannot be where they are wanted.
        ResourceError: the machine has no room for them.
    """
    if not manifest.kv_cache.enable_prefix_caching:
        raise ConfigError(
            f"kv_cache_host_memory_bytes is {config.host_bytes}, and {manifest.name} caches no prefixes: set it to 0, or "
            "rebuild the engine with prefix caching"
        )
    content = f"engine {manifest.digest}"
    caches = [_Cache(manifest, _blocks_of(runner, head), Share(0, config.disk_directory, content))]
    if draft is not None and draft[0].kv_cache.enable_prefix_caching:
        share = Share(0, config.disk_directory, f"draft of {content}", _DRAFT_LOCK)
        caches.append(_Cache(draft[0], _blocks_of(draft[1]), share))
    sizes = [its for cache in caches for its in cache.blocks.share_bytes]
    bounds = Bounds.of(config, sizes)
    if config.host_bytes > machine.free_memory():
        raise no_room(bounds.num_slots, sum(sizes))
    with ExitStack() as undo:
        carriers = [cache.open(bounds.num_slots, undo) for cache in caches]
        kept = [carrier.kept[-bounds.max_files :] if bounds.max_files else () for carrier in carriers]
        for carrier, keys in zip(carriers, kept, strict=True):
            carrier.keep(keys)
        if config.disk_directory is not None:
            pairs = zip(caches, kept, strict=True)
            check_room(config.disk_directory, config.disk_bytes, sum(len(keys) * its.file_bytes for its, keys in pairs))
        undo.pop_all()
    own, *nested = (
        Tiers(cache.books(bounds, keys), carrier) for cache, keys, carrier in zip(caches, kept, carriers, strict=True)
    )
    return own, nested[0] if nested else None


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Of one cache, as their runner has them."""

    share_bytes: tuple[int, ...]
    """Of a block's content in each process that has a share of it."""
    open: Callable[[Share], Carrier]


@dataclass(frozen=True, slots=True)
class _Cache:
    """One that gets tiers."""

    manifest: EngineManifest
    blocks: _Blocks
    share: Share
    """But for its slots."""

    @property
    def file_bytes(self) -> int:
        """Of a block's files."""
        return sum(map(file_bytes, self.blocks.share_bytes))

    def open(self, num_slots: int, undo: ExitStack) -> Carrier:
        carrier = self.blocks.open(replace(self.share, num_slots=num_slots))
        undo.callback(carrier.close)
        return carrier

    def books(self, bounds: Bounds, kept: Sequence[bytes]) -> Offload:
        disk = DiskTier(bounds.max_files, kept) if bounds.max_files else None
        payoff = MeasuredPayoff(self.manifest.kv_cache.block_size)
        return Offload(HostTier(bounds.num_slots), payoff, sum(self.blocks.share_bytes), disk)


def _blocks_of(runner: Runner, head: HeadDrafter[Any] | None = None) -> _Blocks:
    """Of a runner, and of a head that follows it."""
    from trierarch.python_backend.executors.cpu.runner import CpuRunner

    beside = () if head is None else head.kv_arrays
    if isinstance(runner, CpuRunner):
        arrays = (*runner.kv_arrays.arrays, *(_bytes_of(tensor) for tensor in beside))
        return _Blocks((block_bytes_of(arrays),), lambda share: share.open(ArrayCopier(arrays, share.num_slots, "cpu")))
    from trierarch.python_backend.executors.parallel.runner import ParallelRunner
    from trierarch.python_backend.executors.torch.block_copier import TorchCopier
    from trierarch.python_backend.executors.torch.runner import TorchRunner

    assert isinstance(runner, TorchRunner | ParallelRunner), "its blocks are not known here"
    tensors = (*runner.kv_arrays.arrays, *beside)
    size = block_bytes_of(tensors)
    if isinstance(runner, ParallelRunner):
        return _Blocks((size, *runner.other_block_bytes), lambda share: runner.open_carrier(share, beside))
    return _Blocks((size,), lambda share: share.open(TorchCopier(tensors, share.num_slots, "torch")))


def _bytes_of(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """A tensor's own memory; not all of its types are numpy's."""
    import torch

    array: npt.NDArray[np.uint8] = tensor.view(torch.uint8).numpy()
    return array
