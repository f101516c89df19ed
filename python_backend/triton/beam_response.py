"""One response for all beams of a row: what TensorRT-LLM's clients read along the beam axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from trierarch.python_backend.triton.responses import Array, NamedArray


def _padded(value: float) -> Callable[[Sequence[Array]], Array]:
    """Along axis 1, those that are shorter filled up behind: (1, 1, n_i) each -> (1, beams, max n_i)."""

    def stack(arrays: Sequence[Array]) -> Array:
        length = max(array.shape[2] for array in arrays)
        stacked = np.full((1, len(arrays), length), value, arrays[0].dtype)
        for beam, array in enumerate(arrays):
            stacked[0, beam, : array.shape[2]] = array[0, 0]
        return stacked

    return stack


def _beside(axis: int) -> Callable[[Sequence[Array]], Array]:
    return lambda arrays: np.concatenate(arrays, axis=axis)


_STACKED: Final[dict[str, Callable[[Sequence[Array]], Array]]] = {
    "output_ids": _padded(-1),
    "sequence_length": _beside(1),
    "cum_log_probs": _beside(1),
    "output_log_probs": _padded(0.0),
    "num_output_tokens": lambda arrays: np.sum(arrays, axis=0, dtype=arrays[0].dtype),
    "text_output": _beside(0),
    "finish_reason": _beside(0),
    "top_log_probs": _beside(0),
}
"""Output's name -> how those of several beams become one; any other is the first beam's."""


def stack_beams(responses: Sequence[Sequence[NamedArray]]) -> list[NamedArray]:
    """The response of a row from those of its beams, the best first."""
    columns = {name: [array] for name, array in responses[0]}
    for response in responses[1:]:
        for name, array in response:
            if name in columns:
                columns[name].append(array)
    return [(name, _STACKED[name](arrays) if name in _STACKED else arrays[0]) for name, arrays in columns.items()]
