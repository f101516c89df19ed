"""RankModel: one rank's part of the model, with its keys and values, among the others. Rank 0 and its workers run it alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.following import StepRows
from trierarch.python_backend.executors.kv_budget import plan_num_blocks
from trierarch.python_backend.executors.offload.block_copier import block_bytes_of
from trierarch.python_backend.executors.offload.carrier import LocalCarrier
from trierarch.python_backend.executors.offload.share import Share
from trierarch.python_backend.executors.parallel.messages import Join
from trierarch.python_backend.executors.parallel.rank_group import RankGroup
from trierarch.python_backend.executors.parallel.shard import Shard
from trierarch.python_backend.executors.parallel.sharded_adapters import ShardedAdapters
from trierarch.python_backend.executors.parallel.sharded_weights import load_shard
from trierarch.python_backend.executors.parallel.step_wire import AdapterRef, StepWire
from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows
from trierarch.python_backend.executors.torch.block_copier import TorchCopier
from trierarch.python_backend.executors.torch.device import free_memory
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES


class RankModel:
    """Implements Parts. Between `join` and the end all ranks call `compute` and `logits` alike."""

    def __init__(
        self, engine: Path, manifest: EngineManifest, shard: Shard, device: torch.device, taps: tuple[int, ...] = ()
    ) -> None:
        """Load the weights of `shard`. manifest: the whole engine's. taps: as `Head.taps`, of the head that reads along.

        Raises:
            EngineError: they are missing, corrupt, not what the manifest says, or cannot be split so.
        """
        self._whole = manifest
        self._shard = shard
        self._device = device
        self._dtype = TORCH_DTYPES[manifest.dtype]
        self._own = manifest.model_copy(update={"architecture": shard.architecture})
        self._model = EagerModel(self._own, load_shard(engine, manifest, shard, device), device, taps, parts=self)
        self._adapters = ShardedAdapters()
        self._group: RankGroup | None = None
        self._kv: KvArrays | None = None

    def plan_num_blocks(self) -> int:
        """KV blocks that there is room for, if all ranks have as much.

        Raises:
            ResourceError: too few for one sequence.
        """
        count = self._shard.mapping.world_size
        kv_cache = self._whole.kv_cache
        per_token = self._own.architecture.kv_bytes_per_token(kv_cache.dtype)
        # In bytes of all ranks together, as the budget is said.
        together = kv_cache.model_copy(update={"bytes_per_token": per_token * count})
        free = free_memory(self._device) * (1 if self._device.type == "cpu" else count)
        return plan_num_blocks(self._whole.model_copy(update={"kv_cache": together}), free, str(self._device))

    def join(self, how: Join) -> None:
        """Allocate keys and values and meet the other ranks.

        Raises:
            ResourceError: there is no room for them.
            RuntimeError: the others did not come.
        """
        self._kv = KvArrays(how.num_blocks, self._own.architecture, self._whole.kv_cache, self._device)
        self._group = RankGroup(how.meeting, self._shard.mapping, self._shard.rank, self._device, how.timeout)

    @property
    def kv_arrays(self) -> KvArrays:
        """This rank's share of all blocks."""
        assert self._kv is not None, "it has not joined"
        return self._kv

    @property
    def block_bytes(self) -> int:
        """Of this rank's share of a block."""
        return block_bytes_of(self.kv_arrays.arrays)

    def open_tiers(self, share: Share, beside: Sequence[torch.Tensor] = ()) -> LocalCarrier:
        """What copies this rank's share of blocks, and what `beside` has of them.

        Raises:
            ConfigError: files cannot be where they are wanted.
            ResourceError: there is no room for the slots.
        """
        rank = self._shard.rank.index
        own = share if not rank else replace(share, lock=f"{share.lock}.rank{rank}")
        own = replace(own, content=f"{share.content} rank {rank} of {self._shard.mapping.world_size}")
        return own.open(TorchCopier((*self.kv_arrays.arrays, *beside), share.num_slots, "torch"))

    @property
    def group(self) -> RankGroup:
        """Of all ranks."""
        assert self._group is not None, "it has not joined"
        return self._group

    def compute(self, wire: StepWire) -> StepRows[torch.Tensor]:
        """Run a step's tokens through the layers. Rank 0 has the hidden states after the last, others what they made."""
        step = self._model.compute(wire.restored(self._adapters), self.kv_arrays)
        return StepRows(step.items, step.first_rows, self._passed_on(step.hidden), step.tapped)

    def logits(self, hidden: torch.Tensor, adapters: Sequence[AdapterRef | None]) -> torch.Tensor | None:
        """(n, vocab) float32, on rank 0. hidden: (n, hidden) as rank 0 has it, and of that size on the others."""
        group = self.group
        restored = [None if one is None else one.restored(self._adapters) for one in adapters]
        own = self._model.logits(group.hand_out(hidden), restored)
        parts = group.collect(functional.pad(own, (0, self._shard.max_logits - own.shape[1])))
        if not parts:
            return None
        shares = (Shard(self._shard.whole, self._shard.mapping, rank).logits for rank in self._shard.mapping.ranks())
        return torch.cat([part[:, : end - begin] for part, (begin, end) in zip(parts, shares, strict=True)], 1)

    def empty_hidden(self, num_rows: int) -> torch.Tensor:
        """Room for hidden states: (num_rows, hidden)."""
        size = self._whole.architecture.hidden_size
        return torch.empty((num_rows, size), dtype=self._dtype, device=self._device)

    def arrange(self, number: int, tensors: AdapterTensors) -> None:
        """Hold an adapter's part. Any thread. Raise ResourceError where there is no room."""
        self._adapters.put(number, self._model.arrange(tensors))

    def drop(self, number: int) -> None:
        """Let go of an adapter."""
        self._adapters.drop(number)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See Parts.sum."""
        return self.group.sum(x)

    def receive(self, token_ids: torch.Tensor, adapted: AdaptedRows | None = None) -> torch.Tensor:
        """See Parts.receive."""
        previous = self._shard.rank.index - self._shard.mapping.tensor_parallel_size
        return self.group.receive(self.empty_hidden(len(token_ids)), previous)

    def _passed_on(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hand hidden states to the next stage, and those of the last stage to rank 0, which gets them."""
        mapping, rank = self._shard.mapping, self._shard.rank
        if mapping.pipeline_parallel_size == 1:
            return hidden
        if not mapping.is_last(rank):
            self.group.send(hidden, rank.index + mapping.tensor_parallel_size)
        elif rank.place == 0:
            self.group.send(hidden, 0)
        if rank.index == 0:
            last = mapping.world_size - mapping.tensor_parallel_size
            return self.group.receive(torch.empty_like(hidden), last)
        return hidden
