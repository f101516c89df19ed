"""HostCopy: a tensor on its way to the host, which goes on meanwhile."""

from __future__ import annotations

import torch


class HostCopy:
    """Under way from the moment it is made, behind all that the device was told before."""

    def __init__(self, tensor: torch.Tensor) -> None:
        """`tensor` is not to be written to again."""
        self._arrived: torch.cuda.Event | None = None
        self._copy = tensor
        if tensor.device.type == "cuda":
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> torch.Tensor:
        """Until it is here. Other threads of Python's run meanwhile."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
