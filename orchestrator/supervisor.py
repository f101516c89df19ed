"""Supervisor: brings a server back whose process or stub has died.

When a stub dies, its server and model go on saying ready while every new request fails and every open one hangs.
So the stub processes themselves are watched. The server is then killed, which ends the open streams with UNAVAILABLE,
and started again on the same ports.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.triton_server import TritonServer

WATCH_SECONDS: Final = 0.25
BACKOFF_SECONDS: Final = (0.0, 1.0, 2.0, 4.0, 8.0)


@dataclass(slots=True)
class RestartPolicy:
    """How often a server may be restarted: as many times as there are delays within `window` seconds."""

    delays: tuple[float, ...] = BACKOFF_SECONDS
    window: float = 300.0
    _restarts: deque[float] = field(default_factory=deque)

    def next_delay(self, now: float) -> float | None:
        """Seconds to wait before the restart that is due at `now`; None when it was tried too often."""
        while self._restarts and now - self._restarts[0] > self.window:
            self._restarts.popleft()
        if len(self._restarts) >= len(self.delays):
            return None
        delay = self.delays[len(self._restarts)]
        self._restarts.append(now)
        return delay


class Supervisor:
    """Watches one ready server."""

    def __init__(self, server: TritonServer, say: Callable[[str], None], policy: RestartPolicy | None = None) -> None:
        """Watch `server`; `say` is told what happens, in words."""
        self._server, self._say = server, say
        self._policy = policy or RestartPolicy()

    def watch(self) -> NoReturn:
        """Keep the server serving until an exception, such as KeyboardInterrupt, ends the watch.

        Raises:
            ResourceError: it died too often, or does not start any more.
        """
        stubs = self._server.stub_pids()
        while True:
            time.sleep(WATCH_SECONDS)
            ailment = self._ailment(stubs)
            if ailment:
                self._revive(ailment)
                stubs = self._server.stub_pids()

    def _ailment(self, stubs: frozenset[int]) -> str | None:
        if not self._server.is_running:
            return "tritonserver died"
        dead = stubs - self._server.stub_pids()
        if dead:
            return f"stub process {', '.join(map(str, sorted(dead)))} died"
        return None

    def _revive(self, ailment: str) -> None:
        started = time.monotonic()
        while True:
            delay = self._policy.next_delay(time.monotonic())
            if delay is None:
                raise ResourceError(
                    f"{ailment}; restarted {len(self._policy.delays)} times within {self._policy.window:g} s, "
                    f"not again: see {self._server.log}"
                )
            self._say(f"{ailment}: restarting the server" + (f" in {delay:g} s" if delay else ""))
            self._server.kill()
            time.sleep(delay)
            try:
                self._server.start()
            except ResourceError as error:
                ailment = str(error)
                continue
            self._say(f"serving again after {time.monotonic() - started:.1f} s")
            return
