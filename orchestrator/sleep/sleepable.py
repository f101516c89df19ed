"""The server that sleeps, as its keeper sees it: started, watched by its processes, stopped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from trierarch.orchestrator.gateway.upstream import Endpoints


class Sleepable(Protocol):
    """One server. Everything but `interrupt` blocks, and is called from one thread at a time."""

    def start(self) -> Collection[int]:
        """Start it and wait until it is ready; ids of the processes that it cannot serve without.

        Raises:
            TrierarchError: it does not start; nothing of it is left.
        """
        ...

    def interrupt(self) -> None:
        """Make a `start` that another thread is in, or the next one, fail soon."""
        ...

    def stop(self) -> None:
        """End it in good order: it refuses what is new and finishes what is open, for a while. Nothing of it is left."""
        ...

    def kill(self) -> None:
        """End what is left of it at once. Idempotent."""
        ...

    @property
    def endpoints(self) -> Endpoints:
        """Where it listens since it started; another place each time."""
        ...

    @property
    def models(self) -> Mapping[str, frozenset[str]]:
        """Model -> versions that are ready whenever it is; known once it was."""
        ...

    def num_resident_bytes(self) -> int:
        """Memory that it takes now."""
        ...
