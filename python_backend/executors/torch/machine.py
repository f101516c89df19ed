"""What the machine lends this process: cores, memory, and a C allocator that does not hand pages back every step."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import torch

_CGROUP: Final = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def default_device(required: str) -> torch.device:
    """The first CUDA device, or the CPU where there is none or the engine `required` it."""
    return torch.device("cuda" if required != "cpu" and torch.cuda.is_available() else "cpu")


def prepare_cpu() -> None:
    """Set the number of threads torch computes with, and keep freed memory for the next step.

    A second thread on a core slows matrix products down, and more threads than a container's quota stall all of them.
    torch's own count is the ceiling, since it obeys OMP_NUM_THREADS and the process's affinity.
    """
    torch.set_num_threads(min(torch.get_num_threads(), num_cores()))
    try:
        libc = ctypes.CDLL(None)
        # By default glibc maps and unmaps every megabyte anew, and its page faults cost more than the arithmetic.
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    except (OSError, AttributeError):
        return  # not glibc


def drop_mapped_pages(tensor: torch.Tensor) -> None:
    """Give back the memory of a tensor that lies in a mapped file; it is read from the page cache again on demand.

    Anything but a private mapping of a file that nobody wrote to would lose its content.
    """
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        with suppress(OSError, AttributeError):  # not Linux
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def num_cores() -> int:
    """Physical cores this process may use: its affinity and its container's quota considered. At least 1."""
    logical = os.cpu_count() or 1
    threads_per_core = max(1, logical // (psutil.cpu_count(logical=False) or logical))
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    cores = max(1, available // threads_per_core)
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device; on the CPU, within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
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
