"""RankGroup: what ranks tell each other while they compute: sums, hidden states, logits.

The groups are torch's own, NCCL's on GPUs and Gloo's on a CPU, but not its global one: a process that serves may hold
several, and other libraries' besides. They keep to this machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed

from trierarch.builder.mapping import Mapping, Rank

_C10D: Any = torch.distributed
"""Which exports more than its type information says."""
_HERE: Final = "127.0.0.1"
_MEETING: Final = timedelta(seconds=30)
"""For Gloo's ranks to connect; it tries five times as long."""
_NCCL_INTERFACE: Final = ("NCCL_SOCKET_IFNAME", "lo")
"""Over which NCCL's ranks meet; what they say later goes through the GPUs' links or shared memory."""


class RankGroup:
    """One rank's end. All ranks call the same methods in the same order, as their docstrings say."""

    def __init__(self, meeting: Path, mapping: Mapping, rank: Rank, device: torch.device, timeout: float) -> None:
        """Meet the others, through a file that all of them name.

        timeout: seconds that one rank waits for another in what follows.

        Raises:
            RuntimeError: one of them did not come; from all methods, one is gone or late.
        """
        self._mapping = mapping
        self._rank = rank
        self._is_gloo = device.type == "cpu"
        store = _C10D.FileStore(str(meeting), mapping.world_size)
        limit = timedelta(seconds=timeout)
        self._world = _group(store, "world", rank.index, mapping.world_size, device, limit)
        self._stage = self._world
        if mapping.pipeline_parallel_size > 1 and mapping.tensor_parallel_size > 1:
            name = f"stage{rank.stage}"
            self._stage = _group(store, name, rank.place, mapping.tensor_parallel_size, device, limit)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Of a stage's ranks: their `x` added up, place by place, and rounded once.

        The order is fixed, so that ranks have the same bits, whatever the number of rows and whoever was first.
        """
        if self._mapping.tensor_parallel_size == 1:
            return x
        parts = x.new_empty((self._mapping.tensor_parallel_size, *x.shape))
        self._stage.allgather([list(parts.unbind())], [x.contiguous()]).wait()
        first, *others = parts.unbind()
        total = first.float()
        for part in others:
            total += part
        return total.to(x.dtype)

    def hand_out(self, x: torch.Tensor) -> torch.Tensor:
        """Of all ranks: rank 0's `x`, in place."""
        options = _C10D.BroadcastOptions()
        options.rootRank = 0
        self._world.broadcast([x], options).wait()
        return x

    def collect(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Of all ranks: everybody's `x`, equally large, for rank 0; nothing for the others."""
        options = _C10D.GatherOptions()
        options.rootRank = 0
        is_root = self._rank.index == 0
        parts = [torch.empty_like(x) for _ in range(self._mapping.world_size)] if is_root else []
        self._world.gather([parts] if is_root else [], [x.contiguous()], options).wait()
        return parts

    def send(self, x: torch.Tensor, index: int) -> None:
        """To the rank `index`, which receives at the same time."""
        self._world.send([x.contiguous()], index, 0).wait()

    def receive(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Into `x`, from the rank `index`."""
        self._world.recv([x], index, 0).wait()
        return x

    def abort(self) -> None:
        """Let go of whoever waits for a rank that is lost. Gloo notices by itself."""
        if self._is_gloo:
            return
        self._world.abort()
        if self._stage is not self._world:
            self._stage.abort()


def _group(store: Any, name: str, rank: int, size: int, device: torch.device, timeout: timedelta) -> Any:
    """A backend's own group, which has what torch.distributed's functions call."""
    mine = _C10D.PrefixStore(name, store)
    if device.type == "cuda":
        os.environ.setdefault(*_NCCL_INTERFACE)
        options = _C10D.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return _C10D.ProcessGroupNCCL(mine, rank, size, options)
    settings = _C10D.ProcessGroupGloo._Options()
    settings._devices = [_C10D.ProcessGroupGloo.create_device(hostname=_HERE)]
    settings._timeout = _MEETING
    group = _C10D.ProcessGroupGloo(mine, rank, size, settings)
    group._set_default_timeout(timeout)
    return group
