"""Ports: where a server listens, checked before it starts so that an occupied one is told by name."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace

from trierarch.builder.errors import ConfigError, ResourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Ports of Triton's three services, with Triton's own defaults; 0 asks for any free one."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def __post_init__(self) -> None:
        """Raise ConfigError for a port out of range or named twice."""
        numbers = [(field.name, getattr(self, field.name)) for field in fields(self)]
        for name, number in numbers:
            if not 0 <= number <= 65535:
                raise ConfigError(f"--{name}-port is {number}: ports lie between 0 and 65535 (0 picks a free one)")
        for index, (name, number) in enumerate(numbers):
            for other, same in numbers[:index]:
                if number and number == same:
                    raise ConfigError(f"--{name}-port is {number}, and so is --{other}-port: give each its own")

    def reserve(self, host: str) -> Ports:
        """The same ports, each tried on `host`, with free ones in the place of zeros.

        Raises:
            ResourceError: a port is occupied or not allowed, or `host` is no address of this machine.
        """
        with self.bound(host) as sockets:  # all are held until the last is chosen, so that no two are the same
            return self.chosen(sockets)

    @contextmanager
    def bound(self, host: str) -> Iterator[dict[str, socket.socket]]:
        """A listening socket for each port, by name, until the block is left; free ones in the place of zeros.

        Raises:
            ResourceError: as `reserve`.
        """
        with ExitStack() as stack:
            names = [field.name for field in fields(self)]
            yield {name: stack.enter_context(bind(name, host, getattr(self, name))) for name in names}

    def chosen(self, sockets: Mapping[str, socket.socket]) -> Ports:
        """The ports that `sockets` listen on."""
        return replace(self, **{name: bound.getsockname()[1] for name, bound in sockets.items()})


def reserve(name: str, host: str, port: int) -> int:
    """The port, tried on `host`; a free one in the place of 0.

    Raises:
        ResourceError: see `bind`.
    """
    with bind(name, host, port) as bound:
        return int(bound.getsockname()[1])


def bind(name: str, host: str, port: int) -> socket.socket:
    """A socket that holds a port, 0 any free one; `name` is the option's in errors.

    Raises:
        ResourceError: the port is occupied or not allowed, or `host` is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ResourceError(f"--host is {host!r}: {error.strerror}; name an address of this machine") from None
    bound = socket.socket(family, kind, protocol)
    # As Triton does: a port whose last connections are only lingering in TIME_WAIT is free.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(1)
    except OSError as error:
        bound.close()
        raise ResourceError(_remedy(name, host, port, error)) from None
    return bound


def _remedy(name: str, host: str, port: int, error: OSError) -> str:
    choose = f"choose another with --{name}-port (0 picks a free one)"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is occupied: stop what listens there, or {choose}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} on {host} needs privileges: {choose}"
    return f"port {port} on {host} cannot be opened ({error.strerror}): check --host, or {choose}"
