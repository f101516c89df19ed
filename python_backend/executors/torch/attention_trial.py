"""AttentionTrial: what a backend makes of one small step on this very device, beside torch's own operators in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import torch

from trierarch.python_backend.executors.torch.attention import EagerAttention
from trierarch.python_backend.executors.torch.attention_backend import AnyAttentionBackend, AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence as LiveSequence

_TOLERANCE: Final = 0.05
"""Of elements that are about as large as one. Rounding to half precision and a GPU's approximate functions stay below."""
_WINDOW: Final = 7
"""In place of a layer's own: one key of so few is seen to be missing, one of thousands is not."""
_SHARPNESS: Final = 4.0
"""Of queries: scores this large show whether they are capped."""
_REQUEST: Final = Request(request_id="", prompt_token_ids=(0,), sampling=SamplingParams(max_tokens=1), arrival_time=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTrial:
    """A step with single tokens, drafts, a prompt's beginning and a prompt's middle, over blocks in disorder."""

    num_heads: int
    head_dim: int
    shape: AttentionShape
    block_size: int
    has_windows: frozenset[bool]
    """Whether layers have one; True and False where some have."""
    dtype: torch.dtype
    device: torch.device

    def failure(self, backend: AnyAttentionBackend) -> str | None:
        """How `backend` differs from torch's operators; None where it does not. Raises what the backend raises."""
        plan = disordered_plan(self._parts(), self.block_size)
        num_blocks = sum(len(item.sequence.block_table) for item in plan.scheduled)
        windows = {_WINDOW if has_window else None for has_window in self.has_windows}
        blocks = BlockShape(self.block_size, self.shape.num_kv_heads, padding_block=num_blocks)
        generator = torch.Generator(self.device).manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)

        array = draw(2, num_blocks + 1, self.shape.num_kv_heads, self.block_size, self.head_dim)
        queries = draw(plan.num_tokens, self.num_heads, self.head_dim) * _SHARPNESS
        found = InputBatch.build(plan, windows, blocks, self.dtype, self.device, backend)
        expected = InputBatch.build(plan, windows, blocks, torch.float32, self.device, EagerAttention())
        for window in windows:
            mine = found.attention[window](queries, LayerKv(array, None), self.shape).float()
            theirs = expected.attention[window](queries.float(), LayerKv(array.float(), None), self.shape)
            worst = float((mine - theirs).abs().max())
            # A NaN is worse than any.
            if not worst <= _TOLERANCE:
                told = "" if window is None else f" under a window of {window}"
                return f"its attention differs from torch's by {worst:.2g}{told}"
        return None

    def _parts(self) -> list[tuple[int, int]]:
        """As disordered_plan takes them: sequences that end within a block, with it, and right behind it."""
        size = self.block_size
        tokens = [(1, before) for before in (size - 1, size, 3 * size - 1, 40 * size)]
        drafts = [(4, before) for before in (0, max(2 * size - 3, 0), 5 * size)]
        pieces = [(2 * size + 3, 0), (3 * size + 1, size + 1), (3 * size + 1, 9 * size)]
        return tokens + drafts + pieces


def disordered_plan(parts: Sequence[tuple[int, int]], block_size: int) -> Plan:
    """A step that nobody asked for, over blocks from 0 on that lie in disorder and are all held.

    parts: of each sequence, how many tokens are computed and how many are before them.
    """
    widths = [-(-(num_tokens + before) // block_size) for num_tokens, before in parts]
    free = iter(np.random.default_rng(0).permutation(sum(widths)).tolist())
    items = []
    for index, ((num_tokens, before), width) in enumerate(zip(parts, widths, strict=True)):
        sequence = LiveSequence(index, _REQUEST, 0, [0] * (before + num_tokens))
        sequence.block_table = list(islice(free, width))
        items.append(ScheduledSequence(sequence, before, num_tokens))
    return Plan(tuple(items))
