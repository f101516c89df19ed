"""AdapterRegistry: what is told of the adapters of one engine, on disk and in memory."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.adapters.pool import AdapterPool
from trierarch.python_backend.adapters.stats import AdapterInfo, AdapterStats, AdapterStatus
from trierarch.python_backend.errors import InvalidRequest, UnknownAdapter
from trierarch.python_backend.request import Request

_COUNT_SECONDS: Final = 1.0


class AdapterRegistry:
    """The directories, and the pool that their adapters come into. `find` and `infos` may be called from any thread."""

    def __init__(self, directories: AdapterDirectories, pool: AdapterPool) -> None:
        self.pool = pool
        self._directories = directories
        self._num_registered = 0
        self._counted_at = -math.inf

    def find(self, name: str) -> Adapter:
        """See AdapterDirectories.find."""
        return self._directories.find(name)

    def infos(self, requests: Iterable[Request]) -> tuple[AdapterInfo, ...]:
        """Every registered adapter, by name, given all live requests."""
        num_requests = Counter(request.adapter_digest for request in requests)
        infos = []
        for name in self._directories.names():
            try:
                manifest, num_bytes = self._directories.look(name)
            except UnknownAdapter:
                continue  # It was deleted meanwhile.
            except InvalidRequest as error:
                infos.append(AdapterInfo(name=name, status=AdapterStatus.FAILED, reason=str(error)))
                continue
            status, reason = self.pool.status(manifest.digest)
            infos.append(
                AdapterInfo(
                    name=name,
                    digest=manifest.digest,
                    rank=manifest.rank,
                    num_bytes=num_bytes,
                    status=status,
                    reason=reason,
                    num_requests=num_requests[manifest.digest],
                )
            )
        return tuple(infos)

    def with_registered(self, stats: AdapterStats) -> AdapterStats:
        """`stats`, with what was registered a second ago at most: to look takes a millisecond and more."""
        now = time.monotonic()
        if now - self._counted_at >= _COUNT_SECONDS:
            self._num_registered, self._counted_at = len(self._directories.names()), now
        return replace(stats, num_registered=self._num_registered)
