from __future__ import annotations

import pytest

from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.server_config import LogLevel, ServerConfig

PORTS = Ports(http=1, grpc=2, metrics=3)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("node7", "node7")],
)
def test_endpoints_are_addresses_that_clients_here_can_use(host: str, address: str) -> None:
    endpoints = ServerConfig(host=host, ports=PORTS).endpoints

    assert endpoints.http == f"http://{address}:1"
    assert endpoints.grpc == f"{address}:2"
    assert endpoints.metrics == f"http://{address}:3/metrics"


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (LogLevel.ERROR, ["--log-warning=False", "--log-info=False", "--log-verbose=0"]),
        (LogLevel.WARNING, ["--log-warning=True", "--log-info=False", "--log-verbose=0"]),
        (LogLevel.INFO, ["--log-warning=True", "--log-info=True", "--log-verbose=0"]),
        (LogLevel.VERBOSE, ["--log-warning=True", "--log-info=True", "--log-verbose=1"]),
    ],
)
def test_a_log_level_shows_what_is_as_severe(level: LogLevel, shown: list[str]) -> None:
    arguments = ServerConfig(ports=PORTS, log_level=level).arguments()

    assert [argument for argument in arguments if argument.startswith("--log")] == shown
