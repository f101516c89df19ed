"""OffloadConfig: what an operator lends the tiers behind the device cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trierarch.builder.errors import ConfigError

DEFAULT_DISK_BYTES: Final = 8 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadConfig:
    """Names in messages are those of config.pbtxt's parameters."""

    host_bytes: int = 0
    """Of host memory; 0 keeps nothing beyond the device."""
    disk_directory: Path | None = None
    """Of this model alone; None keeps nothing on disk."""
    disk_bytes: int = DEFAULT_DISK_BYTES
    """Of files there."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be."""
        if self.host_bytes < 0 or self.disk_bytes < 0:
            name = "kv_cache_host_memory_bytes" if self.host_bytes < 0 else "kv_cache_disk_bytes"
            raise ConfigError(f"{name} is {min(self.host_bytes, self.disk_bytes)}: must be at least 0")
        if self.disk_directory is not None and not self.host_bytes:
            raise ConfigError(
                f"kv_cache_disk_directory is {str(self.disk_directory)!r} and kv_cache_host_memory_bytes is 0: blocks go to "
                "disk by way of host memory; give that some, such as 256 MiB, or name no directory"
            )

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self.host_bytes > 0


NO_OFFLOAD: Final = OffloadConfig()
"""Nothing is kept beyond the device."""
