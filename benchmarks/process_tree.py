"""What processes and their descendants have used, and what is left for everyone else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

CLOCK_TICK: Final = 0.01
"""Seconds that Linux counts processor time in."""


def descend(pid: int) -> list[psutil.Process]:
    """The process and all its living descendants."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def peak_rss(pid: int) -> int:
    """Sum of VmHWM over the living tree, in bytes. Pages that processes share count for each of them."""
    return sum(_high_water_mark(process.pid) for process in descend(pid))


def _high_water_mark(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has ended meanwhile
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


class ForeignShare:
    """Share of all processors' time that others than the trees of `roots` used since construction.

    Time that the host of a virtual machine stole counts as others'. So does what a tree's process used whose end its
    parent has not taken note of: it can make the machine look busier than it was, never quieter.
    """

    def __init__(self, roots: Callable[[], list[int]]) -> None:
        """Open the window; `roots` is asked again at its end, for processes that started meanwhile."""
        self._roots = roots
        self._busy, self._own, self._started = _busy_seconds(), self._trees(), time.perf_counter()

    def share(self) -> float:
        """Of the window up to now, between 0 and 1."""
        window = (time.perf_counter() - self._started) * (psutil.cpu_count() or 1)
        own = sum(used - self._own.get(root, 0.0) for root, used in self._trees().items())
        foreign = _busy_seconds() - self._busy - own
        return min(1.0, max(0.0, foreign - CLOCK_TICK) / window)

    def _trees(self) -> dict[psutil.Process, float]:
        """Root -> seconds that its tree has used; a root is equal to itself only, not to a later one of its id."""
        trees = {tree[0]: tree for tree in map(descend, self._roots()) if tree}
        return {root: sum(map(_processor_seconds, tree)) for root, tree in trees.items()}


def _processor_seconds(process: psutil.Process) -> float:
    """Its own and that of its ended descendants."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)
