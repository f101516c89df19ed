"""A packed adapter: one LoRA as executors want it, in one safetensors file.

A file `NAME.safetensors` holds one version of the adapter NAME. Its header's metadata has one key, METADATA_KEY, with an
AdapterManifest as JSON. Replacing the file by another (write beside, then rename) replaces the adapter.

Tensors, by name. `in`, `out` are those of a *piece*, a matrix as the checkpoint had it before the builder stacked q, k and
v, and gate and up. `r` is the piece's own rank, 1 to AdapterManifest.rank; `T` the engine's dtype; `V`, `H` as in manifest.py:

    layers.{i}.{piece}.a (r, in) of T          piece: q, k, v, o, gate, up, down; also lm_head.a
    layers.{i}.{piece}.b (out, r) of T         alpha and whatever else scales are in it; also lm_head.b
    layers.{i}.{piece}.gain (out) float32      DoRA only; also lm_head.gain
    embed.a (V, r), embed.b (H, r) of T        a token's row of a is its LoRA input
    lm_head.weight (V, H), embed.weight (V, H) of T: trained whole, in place of the engine's

With them a piece computes gain * (W x) + b (a x) + bias, where gain is 1 if there is none, and the embedding of a token is
its row of embed.weight + embed.b · its row of embed.a, before `embedding_scale`. `a` comes with `b`, and embed.weight or
lm_head.weight without `a` and `b` of the same.

Nothing here imports torch: a server reads and packs adapters while it serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from trierarch.builder.manifest import Architecture, DType, Frozen, PositiveInt
from trierarch.builder.tensors import Array, num_bytes_of

ADAPTER_SUFFIX: Final = ".safetensors"
ADAPTER_SCHEMA_VERSION: Final = 2
METADATA_KEY: Final = "trierarch_adapter"
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""Of an adapter's name: a file's stem, with nothing in it that means anything in a path."""


class AdapterManifest(Frozen):
    """What a packed adapter is."""

    schema_version: int = ADAPTER_SCHEMA_VERSION
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """The identity that caches go by: SHA-256 of a line that says the tensors' names, types and shapes, and of their bytes
    as they lie in the file. Equal tensors have equal digests. Of a PEFT directory that is served as it is, SHA-256 of its
    configuration's bytes and then its tensors file's."""
    rank: PositiveInt
    """Largest of its pieces'; 1 where it has whole matrices alone."""
    dtype: DType
    pieces: tuple[str, ...]
    """Which of q, k, v, o, gate, up, down, lm_head and embed it adapts, in that order."""
    is_dora: bool = False
    base_digest: str | None = None
    """Of DoRA, whose gains are worked out from the engine's weights: SHA-256 of the engine's weights file."""
    source: str
    """Base name of the directory it came from, for people."""


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """A packed adapter in memory."""

    manifest: AdapterManifest
    arrays: Mapping[str, Array]
    """By the names above: float32, float16, or uint16 that are the bits of bfloat16."""

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return num_bytes_of(self.arrays)


LAYER_PIECES: Final = ("q", "k", "v", "o", "gate", "up", "down")
PIECES: Final = (*LAYER_PIECES, "lm_head", "embed")
STACKED: Final[Mapping[str, tuple[str, ...]]] = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
    "lm_head": ("lm_head",),
}
"""An engine's matrix -> the pieces whose rows it stacks, in order."""


def piece_shape(architecture: Architecture, piece: str) -> tuple[int, int]:
    """(out, in) of a piece; of embed, (H, V)."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    queries = architecture.num_heads * architecture.head_dim
    keys = architecture.num_kv_heads * architecture.head_dim
    shapes = {
        "q": (queries, hidden),
        "k": (keys, hidden),
        "v": (keys, hidden),
        "o": (hidden, queries),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
        "lm_head": (architecture.vocab_size, hidden),
        "embed": (hidden, architecture.vocab_size),
    }
    return shapes[piece]


def piece_names(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """(name, piece) of everything that may be adapted: `layers.0.q`, ..., `lm_head`, `embed`. Experts may not."""
    for index, layer in enumerate(architecture.layers):
        for piece in LAYER_PIECES:
            if not (layer.is_moe and piece in ("gate", "up", "down")):
                yield f"layers.{index}.{piece}", piece
    yield from (("lm_head", "lm_head"), ("embed", "embed"))


def to_floats(array: Array) -> npt.NDArray[np.float32]:
    """The numbers of an array of AdapterTensors."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def rounded_to(values: npt.NDArray[np.float32], dtype: DType) -> Array:
    """To the nearest number of `dtype`, of two equally near the even one."""
    if dtype is DType.FLOAT32:
        return np.ascontiguousarray(values)
    if dtype is DType.FLOAT16:
        return np.ascontiguousarray(values.astype(np.float16))
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
