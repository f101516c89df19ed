from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.orchestrator.ports import Ports

HOST = "127.0.0.1"


@pytest.fixture
def occupied() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_zeros_become_free_ports_that_differ() -> None:
    ports = Ports(http=0, grpc=0, metrics=0).reserve(HOST)

    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert 0 not in (ports.http, ports.grpc, ports.metrics)
    assert ports.reserve(HOST) == ports, "chosen ports are free again, and kept"


def test_an_occupied_port_is_named_with_the_option_that_chooses_another(occupied: int) -> None:
    with pytest.raises(ResourceError, match=rf"port {occupied} on {HOST} is occupied.*--grpc-port"):
        Ports(http=0, grpc=occupied, metrics=0).reserve(HOST)


def test_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(ResourceError, match="--host"):
        Ports(http=0, grpc=0, metrics=0).reserve("203.0.113.1")


@pytest.mark.parametrize("number", [-1, 65536])
def test_a_port_out_of_range_is_a_usage_error(number: int) -> None:
    with pytest.raises(ConfigError, match=f"--metrics-port is {number}"):
        Ports(metrics=number)


def test_one_port_for_two_services_is_a_usage_error() -> None:
    with pytest.raises(ConfigError, match="--grpc-port is 9000, and so is --http-port"):
        Ports(http=9000, grpc=9000)
