"""Rest: how long a server stays awake unasked, and how long and how many requests wait for it while it wakes."""

from __future__ import annotations

from dataclasses import dataclass

from trierarch.builder.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What an operator may choose."""

    idle_timeout: float
    """Seconds without a request after which the server is stopped."""
    wake_timeout: float = 60.0
    """Seconds that a request waits for the server before it is refused."""
    max_held_requests: int = 256
    """Requests that may wait at once; one more is refused."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what is not positive."""
        for option, value in (("idle-timeout", self.idle_timeout), ("wake-timeout", self.wake_timeout)):
            if not value > 0:
                raise ConfigError(f"--{option} is {value:g} s: name a time above 0, such as 60s or 5m")
        if self.max_held_requests < 1:
            raise ConfigError(f"--max-held-requests is {self.max_held_requests}: let 1 request or more wait")
