"""AttentionTrial: what a backend makes of one small step on this very device, beside torch's own operators in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from trierarch.python_backend.executors.torch.attention import EagerAttention
from trierarch.python_backend.executors.torch.attention_backend import AnyAttentionBackend, AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape, SequenceGroup
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv

_TOLERANCE: Final = 0.05
"""Of elements that are about as large as one. Rounding to half precision and a GPU's approximate functions stay below."""
_WINDOW: Final = 7
"""In place of a layer's own: one key of so few is seen to be missing, one of thousands is not."""
_SHARPNESS: Final = 4.0
"""Of queries: scores this large show whether they are capped."""


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
        groups = self._groups()
        num_blocks = sum(group.blocks.size for group in groups)
        generator = torch.Generator(self.device).manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)

        array = draw(2, num_blocks, self.shape.num_kv_heads, self.block_size, self.head_dim)
        num_tokens = sum(len(one.starts) * one.num_queries for one in groups)
        queries = draw(num_tokens, self.num_heads, self.head_dim) * _SHARPNESS
        windows = {_WINDOW if has_window else None for has_window in self.has_windows}
        blocks = BlockShape(self.block_size, self.shape.num_kv_heads, padding_block=0)
        found = backend.of_step(groups, windows, blocks, self.dtype, self.device)
        expected = EagerAttention().of_step(groups, windows, blocks, torch.float32, self.device)
        for window in windows:
            mine = found[window](queries, LayerKv(array, None), self.shape).float()
            theirs = expected[window](queries.float(), LayerKv(array.float(), None), self.shape)
            worst = float((mine - theirs).abs().max())
            # A NaN is worse than any.
            if not worst <= _TOLERANCE:
                told = "" if window is None else f" under a window of {window}"
                return f"its attention differs from torch's by {worst:.2g}{told}"
        return None

    def _groups(self) -> list[SequenceGroup]:
        """Sequences that end within a block, with it, and right behind it."""
        size = self.block_size
        wanted = [  # queries, and how many tokens are before them
            (1, (size - 1, size, 3 * size - 1, 40 * size)),
            (4, (0, max(2 * size - 3, 0), 5 * size)),
            (2 * size + 3, (0,)),
            (3 * size + 1, (size + 1, 9 * size)),
        ]
        lengths = [max(starts) + num_queries for num_queries, starts in wanted]
        widths = [-(-length // size) for length in lengths]
        counts = [len(starts) * width for (_, starts), width in zip(wanted, widths, strict=True)]
        disorder = np.random.default_rng(0).permutation(sum(counts))
        groups, first_row, first_block = [], 0, 0
        for (num_queries, starts), width, count in zip(wanted, widths, counts, strict=True):
            blocks = disorder[first_block : first_block + count].reshape(len(starts), width)
            groups.append(SequenceGroup(first_row, num_queries, np.array(starts, dtype=np.int64), blocks))
            first_row += len(starts) * num_queries
            first_block += count
        return groups
