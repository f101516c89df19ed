"""SleepableTriton: a TritonServer behind the front, on ports of this machine alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from dataclasses import replace

import psutil

from trierarch.builder.errors import ResourceError, TrierarchError
from trierarch.orchestrator.fetch import FetchFailed, fetch
from trierarch.orchestrator.gateway.upstream import Endpoints
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.triton_server import TritonServer

ANY_PORTS = Ports(http=0, grpc=0, metrics=0)


class SleepableTriton:
    """Implements Sleepable."""

    def __init__(self, server: TritonServer) -> None:
        """Of a server that is prepared, and not started."""
        self.server = server
        self.models: Mapping[str, frozenset[str]] = {}
        """See Sleepable."""
        self._num_vital = 0

    def start(self) -> Collection[int]:
        """See Sleepable. Others may have taken its last ports while it slept, so it takes new ones."""
        self.server.config = replace(self.server.config, ports=ANY_PORTS)
        try:
            self.server.start()
            if not self.models:
                self.models = self._index()
            return self._vital_pids()
        except TrierarchError:
            self.server.kill()
            raise

    def interrupt(self) -> None:
        """See Sleepable."""
        self.server.interrupt()

    def stop(self) -> None:
        """See Sleepable."""
        self.server.stop()

    def kill(self) -> None:
        """See Sleepable."""
        self.server.kill()

    @property
    def endpoints(self) -> Endpoints:
        """See Sleepable."""
        return Endpoints.of(self.server.endpoints)

    def num_resident_bytes(self) -> int:
        """See Sleepable. What its processes share counts for each of them."""
        total = 0
        for process in self.server.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def _vital_pids(self) -> Collection[int]:
        pids = self.server.vital_pids()
        self._num_vital = max(self._num_vital, len(pids))
        if len(pids) < self._num_vital:
            raise ResourceError("a process of the server died when it was ready")
        return pids

    def _index(self) -> dict[str, frozenset[str]]:
        try:
            index = json.loads(fetch(f"{self.server.endpoints.http}/v2/repository/index", json.dumps({"ready": True})))
        except FetchFailed as error:
            raise ResourceError(f"the server was ready and then did not list its models: {error}") from error
        versions: dict[str, set[str]] = {}
        for model in index:
            versions.setdefault(model["name"], set()).add(model.get("version", ""))
        return {name: frozenset(found) for name, found in versions.items()}
