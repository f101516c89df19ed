"""A step of sequences of every kind over scattered blocks, and what its attention must be."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from support.random_engine import tiny_architecture
from trierarch.builder.manifest import KvCache, KvType
from trierarch.python_backend.executors.torch.attention import attend_reference
from trierarch.python_backend.executors.torch.attention_backend import AnyAttentionBackend, AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays, LayerKv
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence


@dataclass(frozen=True, slots=True)
class RaggedCase:
    """Up to `max_sequences` that decode, begin, go on mid-prompt, or verify drafts, of up to `max_length` tokens."""

    seed: int
    num_kv_heads: int = 2
    group: int = 3
    head_dim: int = 8
    block_size: int = 4
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.float32
    kv_type: KvType = KvType.FLOAT32
    max_sequences: int = 9
    max_length: int = 60

    @property
    def num_heads(self) -> int:
        """Of queries."""
        return self.num_kv_heads * self.group

    def plan(self) -> Plan:
        """Its sequences lie in shuffled blocks."""
        rng = random.Random(self.seed)
        free = rng.sample(range(self.num_blocks), self.num_blocks)
        items = []
        for index in range(rng.randint(1, self.max_sequences)):
            half = self.max_length // 2
            start, num_tokens, num_drafts = rng.choice(
                [
                    (rng.randint(1, self.max_length - 1), 1, 0),
                    (0, rng.randint(1, self.max_length), 0),
                    (rng.randint(1, half), rng.randint(2, half), 0),
                    (9, 1, 3),
                ]
            )
            end = start + num_tokens
            tokens = [rng.randrange(50) for _ in range(end)]
            request = Request(
                request_id=str(index),
                prompt_token_ids=tuple(tokens),
                sampling=SamplingParams(max_tokens=1),
                arrival_time=0.0,
            )
            sequence = Sequence(index, request, 0, tokens)
            sequence.block_table = [free.pop() for _ in range(-(-(end + num_drafts) // self.block_size))]
            items.append(ScheduledSequence(sequence, start, num_tokens, tuple(range(num_drafts)), samples=True))
        return Plan(tuple(items))

    @property
    def num_blocks(self) -> int:
        """Enough for any plan, and as many that belong to nobody."""
        return 2 * self.max_sequences * -(-(self.max_length + 4) // self.block_size)

    def attend(
        self, backend: AnyAttentionBackend, device: torch.device, poison: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `backend` makes of random queries, keys and values, and the reference: (num_tokens, heads, head_dim) each.

        poison: what lies in every slot that holds no key of the step's sequences; None is zero.
        """
        plan = self.plan()
        arrays = self.arrays(device)
        if poison is not None:
            arrays.array.fill_(poison if arrays.array.is_floating_point() else 127)
            if arrays.scales is not None:
                arrays.scales.fill_(poison)
        layer = arrays.layers[0]
        generator = torch.Generator().manual_seed(self.seed)
        for item in plan.scheduled:
            rows = self._rows(item)
            keys, values = (
                torch.randn(rows.shape[0], self.num_kv_heads, self.head_dim, generator=generator).to(self.dtype)
                for _ in range(2)
            )
            layer.write(rows.flatten().to(device), keys.to(device), values.to(device))
        shape = BlockShape(self.block_size, self.num_kv_heads, arrays.padding_block)
        batch = InputBatch.build(plan, {self.window}, shape, self.dtype, device, backend)
        # The keys lie behind the queries, as the model has them.
        both = torch.randn(batch.num_tokens, self.num_heads + self.num_kv_heads, self.head_dim, generator=generator)
        queries = both.to(device, self.dtype)[:, : self.num_heads]
        attention = AttentionShape(self.num_kv_heads, 0.7, self.softcap)
        found = batch.attention[self.window](queries, layer, attention).view(queries.shape)
        expected = torch.empty(queries.shape)
        for item, first_row in zip(batch.items, batch.first_rows, strict=True):
            keys, values = self._stored(layer, item)
            mine = slice(first_row, first_row + len(keys) - item.start)
            expected[mine] = attend_reference(
                queries[mine].cpu(), keys, values, item.start, attention.scale, self.softcap, self.window
            )
        return found, expected

    def arrays(self, device: torch.device) -> KvArrays:
        """Blocks that are all zero."""
        architecture = tiny_architecture(
            num_heads=self.num_heads, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim
        )
        kv_cache = KvCache(dtype=self.kv_type, block_size=self.block_size, bytes_per_token=1)
        return KvArrays(self.num_blocks, architecture, kv_cache, device)

    def _rows(self, item: ScheduledSequence) -> torch.Tensor:
        """(tokens, num_kv_heads) int64: rows of all of a sequence's tokens, as LayerKv.write numbers them."""
        positions = torch.arange(item.start + item.num_tokens + len(item.draft_token_ids))
        blocks = torch.tensor(item.sequence.block_table)[positions // self.block_size]
        heads = torch.arange(self.num_kv_heads)
        return (blocks[:, None] * self.num_kv_heads + heads) * self.block_size + positions[:, None] % self.block_size

    def _stored(self, layer: LayerKv, item: ScheduledSequence) -> list[torch.Tensor]:
        """A sequence's keys and values as they lie there, (tokens, num_kv_heads, head_dim) each."""
        rows = self._rows(item).to(layer.array.device)
        elements = [half.reshape(-1, self.head_dim)[rows].float() for half in layer.array]
        if layer.scales is not None:
            elements = [
                one * half.reshape(-1)[rows][..., None] for one, half in zip(elements, layer.scales, strict=True)
            ]
        return [one.cpu() for one in elements]
