"""Room: which of several servers run where there is not memory for all. Decides, as Lifecycle does; no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trierarch.orchestrator.sleep.lifecycle import RUNNING, Lifecycle, Orders, Phase


@dataclass(slots=True)
class Tenant:
    """A server and what it takes."""

    lifecycle: Lifecycle
    num_bytes: int = 0
    """Of memory while it runs: an estimate until it was measured."""


class Room:
    """Memory that servers share.

    One that is wanted and does not fit makes others leave, the least recently used first and those that nobody uses before
    those with open requests, which finish. Servers get their turn in the order of the requests that wait longest, so that none
    is passed over for ever. One that is larger than the whole room runs alone.
    """

    def __init__(self, tenants: Mapping[str, Tenant], budget: int | None = None) -> None:
        """`budget`: bytes for all that run; None is room for all of them."""
        self.tenants = dict(tenants)
        self._budget = budget

    @property
    def num_used_bytes(self) -> int:
        """Of those that run, or have not quite stopped."""
        return sum(tenant.num_bytes for tenant in self._running())

    def decide(self, now: float) -> dict[str, Orders]:
        """What is to be done now with each; it counts as done."""
        starting = set(self._starting(now))
        return {name: tenant.lifecycle.decide(now, name in starting) for name, tenant in self.tenants.items()}

    def next_change(self, now: float) -> float | None:
        """When `decide` will have something to do although nothing happens; None is never."""
        moments = [tenant.lifecycle.next_change(now) for tenant in self.tenants.values()]
        return min((moment for moment in moments if moment is not None), default=None)

    def _starting(self, now: float) -> Iterator[str]:
        """Those that fit, in turn; the first that does not makes others leave, and whoever comes after it waits."""
        used, is_empty = self.num_used_bytes, not any(self._running())
        waiting = [(name, tenant) for name, tenant in self.tenants.items() if tenant.lifecycle.wants_to_wake(now)]
        for name, tenant in sorted(waiting, key=lambda item: _turn(item[1].lifecycle)):
            lacking = 0 if self._budget is None else used + tenant.num_bytes - self._budget
            if lacking > 0 and not is_empty:
                if tenant.lifecycle.num_held:
                    self._make_room(lacking)
                return
            used, is_empty = used + tenant.num_bytes, False
            yield name

    def _make_room(self, lacking: int) -> None:
        """Send as many away as it takes to free `lacking` bytes, beside those that leave already."""
        for tenant in self._running():
            if tenant.lifecycle.phase in (Phase.DRAINING, Phase.STOPPING):
                lacking -= tenant.num_bytes
        awake = [tenant for tenant in self._running() if tenant.lifecycle.phase is Phase.AWAKE]
        for tenant in sorted(awake, key=lambda one: (one.lifecycle.num_leases > 0, one.lifecycle.last_used)):
            if lacking > 0:
                tenant.lifecycle.make_room()
                lacking -= tenant.num_bytes

    def _running(self) -> Iterator[Tenant]:
        return (tenant for tenant in self.tenants.values() if tenant.lifecycle.phase in RUNNING)


def _turn(lifecycle: Lifecycle) -> float:
    """Those whom nobody waits for come last."""
    return float("inf") if lifecycle.oldest_held is None else lifecycle.oldest_held
