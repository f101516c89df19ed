"""ServerConfig: how a tritonserver is run, and the addresses that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from trierarch.orchestrator.ports import Ports

_EXPLICIT: Final = ("--model-control-mode=explicit", "--load-model=*")
WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class LogLevel(StrEnum):
    """Least severe of Triton's messages that reach the log."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    VERBOSE = "verbose"


class ModelControl(StrEnum):
    """Whether models come and go while the server runs."""

    NONE = "none"
    """Those that are there at the start stay."""
    EXPLICIT = "explicit"
    """All are loaded at the start; clients may load and unload them by Triton's model control extension."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses a client on this machine reaches a server by."""

    http: str
    grpc: str
    metrics: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How a server is run."""

    host: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    log_level: LogLevel = LogLevel.INFO
    drain_timeout: int = 30
    """Seconds that open requests are given to finish when the server is stopped."""
    ready_timeout: float = 600.0
    """Seconds until every model must be ready."""
    model_control: ModelControl = ModelControl.NONE
    auto_complete: bool = True
    """Whether Triton asks each model for what its configuration leaves out."""

    def arguments(self) -> list[str]:
        """Triton's options that say it; the ports must be chosen."""
        severities = list(LogLevel)
        shown = severities[: severities.index(self.log_level) + 1]
        return [
            f"--http-address={self.host}",
            f"--http-port={self.ports.http}",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-address={self.host}",
            f"--metrics-port={self.ports.metrics}",
            f"--exit-timeout-secs={self.drain_timeout}",
            f"--log-warning={LogLevel.WARNING in shown}",
            f"--log-info={LogLevel.INFO in shown}",
            f"--log-verbose={int(LogLevel.VERBOSE in shown)}",
            *([] if self.auto_complete else ["--disable-auto-complete-config"]),
            *(_EXPLICIT if self.model_control is ModelControl.EXPLICIT else []),
        ]

    @property
    def endpoints(self) -> Endpoints:
        """Where clients on this machine connect."""
        host = WILDCARDS.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return Endpoints(
            http=f"http://{host}:{self.ports.http}",
            grpc=f"{host}:{self.ports.grpc}",
            metrics=f"http://{host}:{self.ports.metrics}/metrics",
        )
