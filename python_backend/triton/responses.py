"""Pieces of output as named arrays, with the ranks and the order that TensorRT-LLM's clients rely on.

`output_ids` comes first and has rank 3 (clients read outputs[0].shape[2]); strings have rank 1 (they read
`as_numpy("text_output")[0]`); every other output has a leading batch dimension of 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trierarch.python_backend.request import FinishReason, TokenLogprob, Usage

Array = NDArray[np.generic]
NamedArray = tuple[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one response carries of one sequence: a streamed delta, or all of it."""

    token_ids: tuple[int, ...]
    num_new_tokens: int
    """Of `token_ids`, without an echoed prompt."""
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    cum_log_prob: float = 0.0
    """Over the sequence so far."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    context_logits: tuple[Array, ...] = ()
    """Those behind each prompt token, with a row's first piece; `generation_logits` are those of the new tokens."""
    generation_logits: tuple[Array, ...] = ()
    embedding: Array | None = None
    """With a row's first piece."""
    token_bytes: Mapping[int, bytes] = field(default_factory=dict)
    """Of tokens that the log-probs name."""
    num_prompt_tokens: int = 0
    batch_index: int = 0
    sequence_index: int = 0
    usage: Usage | None = None
    """With a sequence's last piece."""
    finish_reason: FinishReason | None = None
    """With a sequence's last piece."""
    stop_reason: str = ""
    """The stop string that ended the sequence, with its last piece."""


def _int32(*values: int) -> Array:
    return np.array([values], np.int32)


def _int64(value: int) -> Array:
    return np.array([[value]], np.int64)


def _float32(values: Sequence[float], rank: int) -> Array:
    return np.array(values, np.float32).reshape((1,) * (rank - 1) + (-1,))


def _string(text: str) -> Array:
    return np.array([text.encode()], np.object_)


def _token_logprobs(items: Iterable[TokenLogprob | None]) -> Array:
    """JSON: for each token its id, log-probability and `top` rivals as [id, log-probability]; null for the first."""
    return _string(
        json.dumps(
            [
                None if item is None else {"token_id": item.token_id, "logprob": item.logprob, "top": item.top}
                for item in items
            ]
        )
    )


def _logits(rows: Sequence[Array], rank: int) -> Array | None:
    return np.stack(rows).reshape((1,) * (rank - 2) + (len(rows), -1)) if rows else None


def _unit(vector: Array) -> Array:
    """(1, n), of length 1."""
    floats = vector.astype(np.float32)
    unit: Array = floats.reshape(1, -1) / (np.linalg.norm(floats) or 1.0)
    return unit


def _usage(piece: Piece) -> Array | None:
    """JSON: what the sequence cost, with its last piece."""
    if piece.finish_reason is None:
        return None
    usage = piece.usage or _NOT_YET
    return _string(
        json.dumps(
            {
                "prompt_tokens": piece.num_prompt_tokens,
                "cached_tokens": usage.num_cached_tokens,
                "completion_tokens": usage.num_output_tokens,
                "draft_tokens": usage.num_draft_tokens,
                "accepted_draft_tokens": usage.num_accepted_draft_tokens,
            }
        )
    )


def _token_bytes(piece: Piece) -> Array:
    """JSON: token id -> its bytes, each byte a character up to U+00FF."""
    return _string(json.dumps({token_id: data.decode("latin-1") for token_id, data in piece.token_bytes.items()}))


_OUTPUTS: Final[dict[str, Callable[[Piece], Array | None]]] = {
    "output_ids": lambda piece: np.array(piece.token_ids, np.int32).reshape(1, 1, -1),
    "sequence_length": lambda piece: _int32(len(piece.token_ids)),
    "cum_log_probs": lambda piece: _float32([piece.cum_log_prob], rank=2),
    "output_log_probs": lambda piece: _float32([item.logprob for item in piece.logprobs], rank=3),
    "context_logits": lambda piece: _logits(piece.context_logits, rank=3),
    "generation_logits": lambda piece: _logits(piece.generation_logits, rank=4),
    "batch_index": lambda piece: _int32(piece.batch_index),
    "sequence_index": lambda piece: _int32(piece.sequence_index),
    "num_input_tokens": lambda piece: _int32(piece.num_prompt_tokens),
    "num_output_tokens": lambda piece: _int32(piece.num_new_tokens),
    "top_log_probs": lambda piece: _token_logprobs(piece.logprobs),
    "text_output": lambda piece: _string(piece.text),
    "prompt_log_probs": lambda piece: None if piece.prompt_logprobs is None else _token_logprobs(piece.prompt_logprobs),
    "finish_reason": lambda piece: None if piece.finish_reason is None else _string(piece.finish_reason.value),
    "stop_reason": lambda piece: None if piece.finish_reason is None else _string(piece.stop_reason),
    "usage": _usage,
    "token_bytes": _token_bytes,
    "embedding": lambda piece: None if piece.embedding is None else _unit(piece.embedding),
}
"""None where a piece has nothing to fill the output with."""

_PERF_METRICS: Final[dict[str, Callable[[Usage], Array]]] = {
    "kv_cache_alloc_new_blocks": lambda usage: _int32(usage.num_new_blocks),
    "kv_cache_reused_blocks": lambda usage: _int32(usage.num_reused_blocks),
    "kv_cache_alloc_total_blocks": lambda usage: _int32(usage.num_new_blocks + usage.num_reused_blocks),
    "arrival_time_ns": lambda usage: _int64(usage.arrival_ns),
    "first_scheduled_time_ns": lambda usage: _int64(usage.first_scheduled_ns),
    "first_token_time_ns": lambda usage: _int64(usage.first_token_ns),
    "last_token_time_ns": lambda usage: _int64(usage.last_token_ns),
    "acceptance_rate": lambda usage: _float32(
        [usage.num_accepted_draft_tokens / max(1, usage.num_draft_tokens)], rank=2
    ),
    "total_accepted_draft_tokens": lambda usage: _int32(usage.num_accepted_draft_tokens),
    "total_draft_tokens": lambda usage: _int32(usage.num_draft_tokens),
}
PERF_METRICS: Final = frozenset(_PERF_METRICS)
_NOT_YET: Final = Usage(
    num_prompt_tokens=0,
    num_cached_tokens=0,
    num_output_tokens=0,
    arrival_ns=0,
    first_scheduled_ns=0,
    first_token_ns=0,
    last_token_ns=0,
)
"""Streaming clients that ask for metrics read them from every response, and stumble where they are missing. They are
known with the last one; until then they are 0."""


def to_arrays(piece: Piece, outputs: frozenset[str]) -> list[NamedArray]:
    """The arrays of one response, of those outputs that `outputs` names and the piece can fill."""
    filled = ((name, make(piece)) for name, make in _OUTPUTS.items() if name in outputs)
    arrays = [(name, array) for name, array in filled if array is not None]
    usage = piece.usage or _NOT_YET
    return arrays + [(name, make(usage)) for name, make in _PERF_METRICS.items() if name in outputs]
