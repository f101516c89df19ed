"""Lifecycle: when one server runs, decided from what happened to it. No I/O and no clock: `now` is given, in seconds.

                  a request                  it is ready
        ASLEEP ───────────────▶ WAKING ─────────────────────▶ AWAKE ──┐ to be stopped while
          ▲  ▲                  │    ▲ it failed              │  │    │ requests are open
          │  │ nobody wants it  ▼    │ a while ago            │  ▼    ▼
          │  └───────────────── FAILED ◀──────────┐           │  │  DRAINING
          │                                       │ it died   │  │    │
          └─────────────────────────────────── STOPPING ◀─────┘──┴────┘ idle, or the last request ended

Whoever learns something says so (`arrive`, `leave`, `woke`, `died`, ...), then asks `decide` what is to be done. A request
is *held* from its arrival until it is given a *lease*, at once if the server is awake; the server is stopped only while
there is no lease. So a request that comes while it stops is held and wakes it again.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from trierarch.orchestrator.gateway.upstream import Unavailable
from trierarch.orchestrator.sleep.rest import Rest

BACKOFF_SECONDS: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Between a server's end that nobody asked for and its next start; the last one from then on."""
PATIENCE: Final = 3
"""Ends in a row, none of them behind an answered request, after which requests are refused and no longer held."""
UNKNOWN_WAKE_SECONDS: Final = 5.0
"""What a wake is thought to take before one was seen."""
NUM_REMEMBERED_WAKES: Final = 32


class Phase(StrEnum):
    """What the server is doing."""

    ASLEEP = "asleep"
    WAKING = "waking"
    AWAKE = "awake"
    DRAINING = "draining"
    """Awake for the requests it has; others are held."""
    STOPPING = "stopping"
    FAILED = "failed"
    """Down without having been told to; it starts again after a while, if anybody wants it."""


RUNNING: Final = frozenset({Phase.WAKING, Phase.AWAKE, Phase.DRAINING, Phase.STOPPING})
"""Phases in which it takes memory."""


class Deed(StrEnum):
    """What is to be done with the process."""

    START = "start"
    STOP = "stop"


@dataclass(slots=True)
class Orders:
    """What `decide` wants done, in this order."""

    refused: dict[int, Unavailable] = field(default_factory=dict)
    """Held request -> what to tell it."""
    admitted: list[int] = field(default_factory=list)
    """Held requests that have a lease now, the first come first."""
    deed: Deed | None = None


class Lifecycle:
    """One server. Wrong events, such as `woke` of one that sleeps, are bugs and raise AssertionError."""

    def __init__(self, rest: Rest) -> None:
        """Of a server that is asleep."""
        self.phase = Phase.ASLEEP
        self.wakes = 0
        """Starts that succeeded; a lease is of one of them."""
        self.num_leases = 0
        self.last_used = float("-inf")
        """When the last lease ended, or it became ready."""
        self._rest = rest
        self._held: dict[int, float] = {}
        """Request -> when it is refused at the latest; in order of arrival."""
        self._num_arrivals = 0
        self._is_closing = self._is_to_leave = False
        self._num_falls = 0
        """Ends that nobody asked for, since a request was last answered."""
        self._after_stopping = Phase.ASLEEP
        self._has_just_been_given_up = False
        self._reason = ""
        self._retry_at = 0.0
        self._started_at = 0.0
        self._wake_seconds: deque[float] = deque(maxlen=NUM_REMEMBERED_WAKES)

    # What happened.

    def arrive(self, now: float, patience: float | None = None) -> int:
        """Hold a request, for `patience` seconds in place of the usual time; its number.

        Raises:
            Unavailable: too many wait already, the server does not start, or it is to stay down.
        """
        if self._is_closing:
            raise Unavailable("the server is shutting down", self.wake_seconds)
        if self._is_given_up and now < self._retry_at:
            raise self._failure(now)
        if len(self._held) >= self._rest.max_held_requests:
            raise Unavailable(f"{len(self._held)} requests wait for the server to wake", self.seconds_to_wake(now))
        self._num_arrivals += 1
        self._held[self._num_arrivals] = now + (self._rest.wake_timeout if patience is None else patience)
        return self._num_arrivals

    def abandon(self, request: int) -> None:
        """Whoever sent a held request hung up. Nothing to one that is not held any more."""
        self._held.pop(request, None)

    def leave(self, now: float, wake: int, is_answered: bool) -> None:
        """A lease of the `wake`th wake ends; one of a server that has died meanwhile ended with it."""
        if wake != self.wakes or self.phase not in (Phase.AWAKE, Phase.DRAINING):
            return
        assert self.num_leases > 0
        self.num_leases -= 1
        self.last_used = now
        if is_answered:
            self._num_falls = 0

    def woke(self, now: float) -> None:
        """It is ready."""
        assert self.phase is Phase.WAKING
        self.phase = Phase.DRAINING if self._is_closing else Phase.AWAKE
        self.wakes += 1
        self.last_used = now
        self._wake_seconds.append(now - self._started_at)

    def fell(self, now: float, reason: str) -> None:
        """It did not start, and nothing of it is left."""
        assert self.phase is Phase.WAKING
        self._fall(now, reason)

    def died(self, now: float, reason: str) -> None:
        """It, or a part that it cannot serve without, ended by itself; its leases end with it. What is left is being killed."""
        assert self.phase in (Phase.AWAKE, Phase.DRAINING)
        self.num_leases = 0
        self._fall(now, reason)
        self.phase, self._after_stopping = Phase.STOPPING, Phase.FAILED

    def stopped(self) -> None:
        """Nothing of it is left: it was stopped, or killed after it had died."""
        assert self.phase is Phase.STOPPING
        self.phase = self._after_stopping

    def make_room(self) -> None:
        """Somebody else needs its memory: after those that wait now it takes no new requests, and then it stops."""
        assert self.phase is Phase.AWAKE
        self._is_to_leave = True

    def close(self) -> None:
        """Let what is open finish, refuse everything else, and stay down."""
        self._is_closing = True
        if self.phase is Phase.AWAKE:
            self.phase = Phase.DRAINING

    # What follows.

    def decide(self, now: float, has_room: bool = True) -> Orders:
        """What is to be done now; it counts as done. `has_room`: whether there is memory for a start."""
        orders = Orders(refused=dict(self._refusals(now)))
        self._has_just_been_given_up = False
        for request in orders.refused:
            del self._held[request]
        if self.phase is Phase.FAILED and now >= self._retry_at and not self._is_wanted(now):
            self.phase = Phase.ASLEEP
        if self.wants_to_wake(now) and has_room:
            self.phase, self._started_at = Phase.WAKING, now
            orders.deed = Deed.START
        if self.phase is Phase.AWAKE:
            orders.admitted = list(self._held)
            self._held.clear()
            self.num_leases += len(orders.admitted)
            if self._is_to_leave or now >= self._idle_at:
                self.phase, self._is_to_leave = Phase.DRAINING, False
        if self.phase is Phase.DRAINING and not self.num_leases:
            self.phase, self._after_stopping, self._num_falls = Phase.STOPPING, Phase.ASLEEP, 0
            orders.deed = Deed.STOP
        return orders

    def next_change(self, now: float) -> float | None:
        """When `decide` will have something to do although nothing happens; None is never."""
        moments = list(self._held.values())
        if self.phase is Phase.AWAKE and not self.num_leases:
            moments.append(self._idle_at)
        if self.phase is Phase.FAILED and self._retry_at > now:
            moments.append(self._retry_at)
        return max(now, min(moments)) if moments else None

    def wants_to_wake(self, now: float) -> bool:
        """Whether it would start if there was room."""
        if self._is_closing or not self._is_wanted(now):
            return False
        return self.phase is Phase.ASLEEP or (self.phase is Phase.FAILED and now >= self._retry_at)

    # What is known.

    @property
    def num_held(self) -> int:
        """Requests that wait."""
        return len(self._held)

    @property
    def oldest_held(self) -> float | None:
        """When the request that waits longest will be refused."""
        return next(iter(self._held.values()), None)

    @property
    def is_down_for_good(self) -> bool:
        """Whether it was closed, and nothing of it is left."""
        return self._is_closing and self.phase not in RUNNING

    def is_ready(self, now: float) -> bool:
        """Whether a request that came now would be held or answered, as far as can be known."""
        return not self._is_closing and not (self._is_given_up and now < self._retry_at)

    @property
    def wake_seconds(self) -> float:
        """Median of what waking took of late."""
        return statistics.median(self._wake_seconds) if self._wake_seconds else UNKNOWN_WAKE_SECONDS

    def seconds_to_wake(self, now: float) -> float:
        """Until it will be awake, at a guess: what is left of a median wake, and a whole one if that is over."""
        left = self._started_at + self.wake_seconds - now if self.phase is Phase.WAKING else 0.0
        return left if left > 0 else self.wake_seconds

    @property
    def _idle_at(self) -> float:
        return self.last_used + self._rest.idle_timeout if not self.num_leases else float("inf")

    @property
    def _is_given_up(self) -> bool:
        # One that has never started will hardly do so the second time.
        return self.phase is Phase.FAILED and self._num_falls >= (PATIENCE if self.wakes else 1)

    def _is_wanted(self, now: float) -> bool:
        """By a request that waits, or by those that may come while it would not have gone to sleep."""
        is_missed = self.phase is Phase.FAILED and self._num_falls < PATIENCE and now < self._idle_at
        return bool(self._held) or is_missed

    def _fall(self, now: float, reason: str) -> None:
        delay = BACKOFF_SECONDS[min(self._num_falls, len(BACKOFF_SECONDS) - 1)]
        self.phase, self._reason, self._retry_at = Phase.FAILED, reason, now + delay
        self._num_falls += 1
        self._has_just_been_given_up = self._is_given_up

    def _failure(self, now: float) -> Unavailable:
        return Unavailable(f"the server does not start: {self._reason}", max(0.0, self._retry_at - now))

    def _refusals(self, now: float) -> Iterator[tuple[int, Unavailable]]:
        for request, deadline in self._held.items():
            if self._is_closing:
                yield request, Unavailable("the server is shutting down", self.wake_seconds)
            elif self._has_just_been_given_up:
                yield request, self._failure(now)
            elif now >= deadline and self.phase is not Phase.AWAKE:
                waited = f"the server did not wake within {self._rest.wake_timeout:g} s"
                yield request, Unavailable(waited, self.seconds_to_wake(now))
