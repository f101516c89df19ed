"""KvTiers: what `serve` and `compose` are told of the tiers behind the KV cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.sizes import parse_size


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTiers:
    """None is what the repository says, or the backend's default."""

    host_bytes: int | None = None
    disk_directory: Path | None = None
    disk_bytes: int | None = None

    @classmethod
    def parse(cls, host_bytes: str | None, disk_directory: Path | None, disk_bytes: str | None) -> KvTiers:
        """From the options' words.

        Raises:
            ConfigError: a size is none, or the disk is asked for in part.
        """
        if disk_bytes is not None and disk_directory is None:
            raise ConfigError(f"--kv-disk-bytes is {disk_bytes!r}, of no directory: name one with --kv-disk-directory")
        if disk_directory is not None and host_bytes is None:
            raise ConfigError(
                f"--kv-disk-directory is {str(disk_directory)!r}, and blocks go there by way of host memory: give it some "
                "with --kv-host-bytes, such as 256MiB"
            )
        return cls(
            host_bytes=None if host_bytes is None else parse_size(host_bytes, least=0),
            disk_directory=disk_directory,
            disk_bytes=None if disk_bytes is None else parse_size(disk_bytes),
        )

    def of(self, name: str) -> KvTiers:
        """The same of one of several, which keeps its files in a directory of its own within the one named."""
        return replace(self, disk_directory=None if self.disk_directory is None else self.disk_directory / name)

    def parameters(self) -> dict[str, str]:
        """Of a model's config.pbtxt."""
        directory = None if self.disk_directory is None else self.disk_directory.resolve()
        values = {
            "kv_cache_host_memory_bytes": self.host_bytes,
            "kv_cache_disk_directory": directory,
            "kv_cache_disk_bytes": self.disk_bytes,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


AS_THE_REPOSITORY_SAYS: Final = KvTiers()
