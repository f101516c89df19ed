"""Opens the tiers behind an engine's device cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors import machine
from trierarch.python_backend.executors.head_drafter import HeadDrafter
from trierarch.python_backend.executors.offload.array_copier import ArrayCopier, no_room
from trierarch.python_backend.executors.offload.block_copier import BlockCopier
from trierarch.python_backend.executors.offload.block_files import BlockFiles
from trierarch.python_backend.executors.offload.config import OffloadConfig
from trierarch.python_backend.executors.runner import Runner
from trierarch.python_backend.kv.disk_tier import DiskTier
from trierarch.python_backend.kv.host_tier import HostTier
from trierarch.python_backend.kv.offload import Offload
from trierarch.python_backend.kv.payoff import MeasuredPayoff

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


@dataclass(frozen=True, slots=True)
class Tiers:
    """The books of the tiers, and what their copies are made with."""

    offload: Offload
    copier: BlockCopier
    files: BlockFiles | None


def open_tiers(
    config: OffloadConfig, manifest: EngineManifest, runner: Runner, head: HeadDrafter[Any] | None = None
) -> Tiers:
    """The tiers of a runner's blocks, in which a head that follows it has keys and values too.

    Raises:
        ConfigError: the engine caches no prefixes, the runner's blocks cannot be copied, or the tiers hold no block or cannot
            be where they are wanted.
        ResourceError: the machine has no room for them.
    """
    if not manifest.kv_cache.enable_prefix_caching:
        raise ConfigError(
            f"kv_cache_host_memory_bytes is {config.host_bytes}, and {manifest.name} caches no prefixes: set it to 0, or "
            "rebuild the engine with prefix caching"
        )
    block_bytes = manifest.kv_cache.block_size * manifest.kv_cache.bytes_per_token
    if config.host_bytes > machine.free_memory():
        raise no_room(config.host_bytes // block_bytes, block_bytes)
    copier = open_copier(runner, head, config.host_bytes)
    content = f"engine {manifest.digest} {copier.form}"
    files = None
    if config.disk_directory is not None:
        files = BlockFiles(config.disk_directory, content, copier.block_bytes, config.disk_bytes)
    disk = None if files is None else DiskTier(files.max_files, files.kept)
    payoff = MeasuredPayoff(manifest.kv_cache.block_size)
    return Tiers(Offload(HostTier(copier.num_slots), payoff, copier.block_bytes, disk), copier, files)


def open_copier(runner: Runner, head: HeadDrafter[Any] | None, host_bytes: int) -> BlockCopier:
    """What copies the blocks of a runner, and of a head that follows it, into as many slots as `host_bytes` buys.

    Raises:
        ConfigError: it is a runner whose blocks lie elsewhere, or the bytes buy no slot.
        ResourceError: there is no room for the slots.
    """
    from trierarch.python_backend.executors.cpu.runner import CpuRunner

    beside = () if head is None else head.kv_arrays
    if isinstance(runner, CpuRunner):
        arrays = (*runner.kv_arrays.arrays, *(_bytes_of(tensor) for tensor in beside))
        return ArrayCopier(arrays, host_bytes, "cpu")
    from trierarch.python_backend.executors.torch.runner import TorchRunner

    if isinstance(runner, TorchRunner):
        from trierarch.python_backend.executors.torch.block_copier import TorchCopier

        return TorchCopier((*runner.kv_arrays.arrays, *beside), host_bytes, "torch")
    raise ConfigError(
        f"kv_cache_host_memory_bytes is {host_bytes}, and this engine's blocks lie on several devices: set it to 0"
    )


def _bytes_of(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """A tensor's own memory; not all of its types are numpy's."""
    import torch

    array: npt.NDArray[np.uint8] = tensor.view(torch.uint8).numpy()
    return array
