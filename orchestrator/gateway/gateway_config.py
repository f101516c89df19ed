"""GatewayConfig: what the operator says of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trierarch.builder.errors import ConfigError

DEFAULT_PORT: Final = 9000
DEFAULT_MODEL: Final = "tensorrt_llm"
"""Triton's model that holds the executor."""
DEFAULT_MAX_OPEN: Final = 512
DEFAULT_MAX_BODY_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """How the gateway is run. Raise ConfigError for a value out of range."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 picks a free one."""
    api_keys_file: Path | None = None
    api_keys_variable: str | None = None
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    max_header_bytes: int = 32 << 10
    """Of all headers of a request, its first line included."""
    max_connections: int = 2048
    max_open: int = DEFAULT_MAX_OPEN
    """Requests that wait or run at once; the model's own queue may be shorter."""
    max_open_per_key: int | None = None
    read_timeout: float = 30.0
    """Seconds from a connection, or a request's first byte, to the last byte of its body."""
    write_timeout: float = 60.0
    """Seconds that a client may leave its answer unread before the work is cancelled."""
    adapter_store: Path | None = None
    """Adapters that clients may have loaded, by name; None lets them load none."""
    adapter_directory: Path | None = None
    """Where those are served from: one of the engine's directories of adapters."""

    def __post_init__(self) -> None:
        """See the class."""
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--gateway-port is {self.port}: ports lie between 0 and 65535 (0 picks a free one)")
        for name in ("max_body_bytes", "max_header_bytes", "max_connections", "max_open"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.max_open_per_key is not None and self.max_open_per_key < 1:
            raise ConfigError(f"max_open_per_key is {self.max_open_per_key}: it must be at least 1")
        if (self.adapter_store is None) != (self.adapter_directory is None):
            raise ConfigError("--adapter-store and --adapter-directory go together: name both, or neither")
