"""FlashInferAttention: a step's attention by FlashInfer's paged kernels, chunks, single tokens and drafts in one call.

What is counted on, of releases 0.5.3 to 0.7.2 (flashinfer/prefill.py and include/flashinfer/attention/scheduler.cuh):

- layout "HND" is that of KvArrays, and keys and values may be two arrays, of the same strides;
- under `causal` a request's last query stands at its last key, and sees it;
- `window_left` counts the keys before a query's own, so that a window of w is w - 1; no window is -1;
- scores are capped after they are scaled, as cap * tanh(score / cap);
- the tables of a plan may lie on the CPU, in int32, and the last page of a request holds 1 to page_size keys;
- of a page's slots none is read as a value behind the request's last key;
- backend "fa2" takes the heads of a group as rows of one tile, and shares long contexts out to programs; "fa3" does neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape, Ints, SequenceGroup
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv

_RECOMMENDED_WORKSPACE: Final = 128 * 2**20
_PROGRAMS_PER_PROCESSOR: Final = 2
"""Over which a plan shares contexts out at most."""
_LARGE_HEAD: Final = 256
"""From here on a program takes 64 rows at most, else 128."""


class FlashInferAttention:
    """Implements AttentionBackend. What it made of a step holds until it is asked for the next one."""

    def __init__(
        self,
        wrapper: Any,
        label: str,
        num_heads: int,
        head_dim: int,
        shape: AttentionShape,
        device: torch.device,
        num_processors: int,
    ) -> None:
        """wrapper: the class BatchPrefillWithPagedKVCacheWrapper. num_processors: that the device has.

        num_heads: of queries; with head_dim and shape those of every layer.
        """
        self.label = label
        self._wrapper = wrapper
        self._num_heads = num_heads
        self._head_dim = head_dim
        self.shape = shape
        self._device = device
        num_bytes = workspace_bytes(num_heads // shape.num_kv_heads, head_dim, num_processors)
        self._workspace = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._planners: list[Any] = []
        self._num_steps = 0
        self._planned: torch.cuda.Event | None = None

    def of_step(
        self,
        groups: Sequence[SequenceGroup],
        windows: Collection[int | None],
        shape: BlockShape,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Mapping[int | None, PlannedAttention]:
        """See AttentionBackend.of_step."""
        assert device == self._device, "the workspace is on another device"
        if self._planned is not None:
            # A plan is copied from the host's memory without waiting, and the next one is written where it was.
            self._planned.synchronize()
        tables = PageTables.of(groups, shape.block_size)
        page_ids = on_device(_tensor(tables.page_ids), device)
        planned = {window: self._planner(index) for index, window in enumerate(windows)}
        for window, planner in planned.items():
            planner.plan(
                _tensor(tables.first_queries),
                _tensor(tables.first_pages),
                page_ids,
                _tensor(tables.last_page_lengths),
                num_qo_heads=self._num_heads,
                num_kv_heads=self.shape.num_kv_heads,
                head_dim_qk=self._head_dim,
                page_size=shape.block_size,
                causal=True,
                sm_scale=self.shape.scale,
                window_left=-1 if window is None else window - 1,
                logits_soft_cap=self.shape.softcap,
                q_data_type=dtype,
                kv_data_type=dtype,
            )
        self._planned = copied(device)
        self._num_steps += 1
        return {window: PlannedAttention(self, planner, self._num_steps) for window, planner in planned.items()}

    def is_current(self, step: int) -> bool:
        """Whether the plans of that step, counted from 1, are those that a call would follow."""
        return step == self._num_steps

    def _planner(self, index: int) -> Any:
        """One for each window of a step: a plan lies in memory of its planner."""
        if index == len(self._planners):
            self._planners.append(self._wrapper(self._workspace, kv_layout="HND", backend="fa2"))
        return self._planners[index]


@dataclass(frozen=True, slots=True)
class PlannedAttention:
    """Implements StepAttention."""

    backend: FlashInferAttention
    planner: Any
    step: int

    def __call__(self, queries: torch.Tensor, kv: LayerKv, shape: AttentionShape) -> torch.Tensor:
        """See StepAttention."""
        assert self.backend.is_current(self.step), "another step was planned since"
        assert shape == self.backend.shape, "a plan holds the shape"
        num_tokens, num_heads, head_dim = queries.shape
        queries = queries if queries.stride(2) == 1 else queries.contiguous()
        result = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        keys, values = kv.array
        self.planner.run(queries, (keys, values), out=result)
        return result.view(num_tokens, num_heads * head_dim)


@dataclass(frozen=True, slots=True)
class PageTables:
    """A step's sequences as FlashInfer has them, a block of ours being a page."""

    first_queries: Ints  # (num_sequences + 1)
    """Row of each sequence's first query; behind them the number of rows."""
    first_pages: Ints  # (num_sequences + 1)
    """Likewise among `page_ids`."""
    page_ids: Ints  # (num_pages): of all sequences, one after the other
    last_page_lengths: Ints  # (num_sequences): keys in each one's last page

    @classmethod
    def of(cls, groups: Sequence[SequenceGroup], page_size: int) -> PageTables:
        """groups: all tokens of a step, in the order of their rows."""
        num_queries = np.concatenate([np.full(len(group.starts), group.num_queries) for group in groups])
        lengths = np.concatenate([group.starts + group.num_queries for group in groups])
        num_pages = -(-lengths // page_size)
        page_ids = []
        first = 0
        for group in groups:
            mine = num_pages[first : first + len(group.starts)]
            page_ids.append(group.blocks[np.arange(group.blocks.shape[1]) < mine[:, None]])
            first += len(group.starts)
        return cls(
            first_queries=_from_zero(num_queries),
            first_pages=_from_zero(num_pages),
            page_ids=np.concatenate(page_ids),
            last_page_lengths=lengths - (num_pages - 1) * page_size,
        )


def workspace_bytes(group: int, head_dim: int, num_processors: int) -> int:
    """What any plan may need for the partial results of contexts that are shared out, in float32.

    A plan that shares out has at most _PROGRAMS_PER_PROCESSOR programs a processor over all KV heads, each of a tile
    of rows for every query head, and of every row the values and a sum. group: query heads to a KV head.
    """
    rows = 64 if head_dim >= _LARGE_HEAD else 128
    needed = _PROGRAMS_PER_PROCESSOR * num_processors * group * rows * (head_dim + 1) * 4
    return max(_RECOMMENDED_WORKSPACE, needed)


def copied(device: torch.device) -> torch.cuda.Event | None:
    """Happens once the device has all that was copied to it; None where nothing is copied."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _from_zero(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])


def _tensor(numbers: Ints) -> torch.Tensor:
    return torch.from_numpy(numbers.astype(np.int32))
