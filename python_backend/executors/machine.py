"""What the machine lends this process: cores, memory, and a C allocator that does not hand pages back every step."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

_CGROUP: Final = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> None:
    """Let the C allocator keep freed memory for the next step.

    By default glibc maps and unmaps every megabyte anew, and its page faults cost more than the arithmetic.
    """
    with suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def drop_mapped_pages(address: int, num_bytes: int) -> None:
    """Give back the memory of bytes that lie in a mapped file; they are read from the page cache again on demand.

    Anything but a mapping of a file that nobody wrote to would lose its content.
    """
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        with suppress(OSError, AttributeError):  # not Linux
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def resident_bytes() -> int:
    """Memory that this process holds."""
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")


def num_cores() -> int:
    """Physical cores this process may use: its affinity and its container's quota considered. At least 1.

    A second thread on a core slows matrix products down, and more threads than a container's quota stall all of them.
    """
    logical = os.cpu_count() or 1
    threads_per_core = max(1, logical // (psutil.cpu_count(logical=False) or logical))
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    cores = max(1, available // threads_per_core)
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def free_memory() -> int:
    """Bytes that can still be allocated, within the container's limit."""
    free = int(psutil.virtual_memory().available)
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
