"""The device that torch computes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trierarch.builder.machine import takes_gpu
from trierarch.python_backend.executors import machine


def default_device(required: str) -> torch.device:
    """The first CUDA device, or the CPU where there is none or the engine `required` it.

    Raises:
        ResourceError: there is one that torch cannot use.
    """
    has_cuda = required != "cpu" and (torch.cuda.is_available() or takes_gpu(required))
    return torch.device("cuda" if has_cuda else "cpu")


def prepare_cpu() -> None:
    """Set the number of threads torch computes with, and keep freed memory for the next step.

    torch's own count is the ceiling, since it obeys OMP_NUM_THREADS and the process's affinity.
    """
    torch.set_num_threads(min(torch.get_num_threads(), machine.num_cores()))
    machine.keep_freed_memory()


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device; on the CPU, within the container's limit."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.free_memory()


def on_device(numbers: torch.Tensor | Sequence[float], device: torch.device) -> torch.Tensor:
    """The host's numbers on a device, without waiting for what that still computes: copied from pinned memory.

    Integers become int64, others float32, but for a tensor's own.
    """
    tensor = numbers if isinstance(numbers, torch.Tensor) else torch.tensor(numbers)
    if device.type != "cuda" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
