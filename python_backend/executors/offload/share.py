"""Share: what one process keeps of every block that lies beyond the device, and how large all shares may be together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trierarch.builder.errors import ConfigError
from trierarch.python_backend.executors.offload.block_copier import BlockCopier
from trierarch.python_backend.executors.offload.block_files import LOCK, BlockFiles, file_bytes
from trierarch.python_backend.executors.offload.carrier import LocalCarrier
from trierarch.python_backend.executors.offload.config import OffloadConfig


@dataclass(frozen=True, slots=True)
class Share:
    """Of all blocks alike: each has the same slot, and a file of the same key, in every share."""

    num_slots: int
    directory: Path | None
    """Of the files; None keeps none."""
    content: str
    """Says whose blocks these are and which share of them, but not how bytes stand in it."""
    lock: str = LOCK
    """As BlockFiles has it."""

    def open(self, copier: BlockCopier) -> LocalCarrier:
        """What makes its copies. Raise ConfigError where its files cannot be where they are wanted."""
        if self.directory is None:
            return LocalCarrier(copier)
        content = f"{self.content} {copier.form}"
        return LocalCarrier(copier, BlockFiles(self.directory, content, copier.block_bytes, self.lock))


@dataclass(frozen=True, slots=True)
class Bounds:
    """Blocks that what an operator lends is good for."""

    num_slots: int
    """In host memory."""
    max_files: int
    """On disk, each in as many files as there are shares; 0 is no disk."""
    file_bytes: int
    """Of the files of one block."""

    @classmethod
    def of(cls, config: OffloadConfig, share_bytes: Sequence[int]) -> Bounds:
        """share_bytes: of a block's content in each share.

        Raises:
            ConfigError: it is not good for one.
        """
        in_memory, on_disk = sum(share_bytes), sum(file_bytes(its) for its in share_bytes)
        if config.host_bytes < in_memory:
            raise ConfigError(
                f"kv_cache_host_memory_bytes is {config.host_bytes}, and one block takes {in_memory}: give it more, or 0 for none"
            )
        num_slots = config.host_bytes // in_memory
        if config.disk_directory is None:
            return cls(num_slots, 0, on_disk)
        if config.disk_bytes < on_disk:
            raise ConfigError(
                f"kv_cache_disk_bytes is {config.disk_bytes}, and one block takes {on_disk}: give it more, or name no directory"
            )
        return cls(num_slots, config.disk_bytes // on_disk, on_disk)
