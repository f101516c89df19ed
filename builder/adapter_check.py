"""Whether an adapter fits an engine: decided by names, types and shapes before any tensor is read, then by its numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from trierarch.builder.adapter import (
    PIECES,
    AdapterManifest,
    AdapterTensors,
    piece_names,
    piece_shape,
    to_floats,
)
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import WEIGHTS_NAME, Architecture, DType, EngineManifest, Lora
from trierarch.builder.packed_adapter import REPACK, digest_of
from trierarch.builder.safetensors_header import Header, TensorTable
from trierarch.builder.tensors import Array, Tensors, headers_of

STORED: Final[Mapping[DType, str]] = {DType.FLOAT32: "F32", DType.FLOAT16: "F16", DType.BFLOAT16: "BF16"}
"""What safetensors calls a type."""
_EXPONENT: Final = np.uint16(0x7F80)
"""Of bfloat16: all of its bits are set in NaN and infinity, and in nothing else."""
_CHUNK: Final = 1 << 16
"""Numbers looked at at once: what is made of them stays in the cache."""


def check_adapter(tensors: AdapterTensors, engine: EngineManifest) -> None:
    """Refuse an adapter that the engine cannot compute with as it stands.

    Raises:
        AdapterError: the engine takes none, the adapter is another model's or too large, contradicts itself, or holds
            NaN or infinity; the tensor, its value and the remedy are named.
    """
    check_headers(tensors.manifest, headers_of(tensors.arrays), engine)
    check_numbers(tensors)


def check_numbers(tensors: AdapterTensors) -> None:
    """The rest of `check_adapter` for an adapter whose headers were checked.

    Raises:
        AdapterError: it holds NaN or infinity.
    """
    arrays = tensors.arrays
    if isinstance(arrays, Tensors) and all(map(is_finite, arrays.runs())):
        return
    for name, array in arrays.items():
        if not is_finite(array):
            raise AdapterError(f"{name} holds NaN or infinity; train the adapter anew, or take an earlier step of it")


def check_headers(manifest: AdapterManifest, headers: Mapping[str, Header], engine: EngineManifest) -> None:
    """As much of `check_adapter` as can be told without a tensor; what passes has no more bytes than the engine allows.

    Raises:
        AdapterError: as `check_adapter`.
    """
    side = _side(manifest, engine)
    _check_claims(manifest, _claims(headers, side))


def check_table(manifest: AdapterManifest, table: TensorTable, engine: EngineManifest) -> None:
    """`check_headers` of a file's, each of them looked at once for an engine: adapters of one kind have equal tables.

    Raises:
        AdapterError: as `check_adapter`.
    """
    side = _side(manifest, engine)
    _check_claims(manifest, _claims_of_table(table, side))


def lora_of(engine: EngineManifest) -> Lora:
    """What adapters the engine takes.

    Raises:
        AdapterError: it takes none.
    """
    if engine.lora is None:
        raise AdapterError(
            f"lora is null: engine {engine.name!r} takes no adapters; build it with --max-adapters 1 or more"
        )
    return engine.lora


def is_finite(array: Array) -> bool:
    """Whether there is no NaN and no infinity; no copy of all the numbers is made in a wider type."""
    flat = array.reshape(-1)
    return all(_is_finite(flat[at : at + _CHUNK]) for at in range(0, flat.size, _CHUNK))


def _is_finite(some: Array) -> bool:
    if some.dtype == np.uint16:
        return not bool(((some & _EXPONENT) == _EXPONENT).any())
    return bool(np.isfinite(to_floats(some)).all())


def check_rank(name: str, rank: int, lora: Lora) -> None:
    """Refuse a rank that is none, or above the engine's.

    Raises:
        AdapterError: it is.
    """
    if rank < 1:
        raise AdapterError(f"{name} has rank {rank}: there is nothing in it; train the adapter anew")
    if rank > lora.max_rank:
        raise AdapterError(
            f"{name} has rank {rank}, lora.max_rank is {lora.max_rank}; rebuild the engine with --max-lora-rank {rank}"
        )


def pieces_of(names: Collection[str]) -> tuple[str, ...]:
    """Which pieces the tensors of these names adapt, in the order of PIECES."""
    found = {name.split(".")[2 if name.startswith("layers.") else 0] for name in names}
    return tuple(piece for piece in PIECES if piece in found)


def manifest_of(
    arrays: Mapping[str, Array], engine: EngineManifest, source: str, *, is_dora: bool = False
) -> AdapterManifest:
    """What a packed adapter of these tensors says of itself, for the engine that they are of."""
    headers = headers_of(arrays)
    return AdapterManifest(
        digest=digest_of(arrays),
        rank=rank_of(headers),
        dtype=engine.dtype,
        pieces=pieces_of(headers),
        is_dora=is_dora,
        base_digest=engine.files[WEIGHTS_NAME].sha256 if is_dora else None,
        source=source,
    )


def rank_of(headers: Mapping[str, Header]) -> int:
    """Largest of the pieces'; 1 where there are whole matrices alone."""
    ranks = (shape[1 if name == "embed.a" else 0] for name, (_, shape) in headers.items() if name.endswith(".a"))
    return max(ranks, default=1)


class _Side(NamedTuple):
    """As much of an engine as tensors are held against."""

    name: str
    architecture: Architecture
    dtype: DType
    lora: Lora


class _Claims(NamedTuple):
    """What tensors say that a manifest says too."""

    rank: int
    pieces: tuple[str, ...]
    has_gains: bool


def _side(manifest: AdapterManifest, engine: EngineManifest) -> _Side:
    """The engine's, if it could take an adapter of this manifest."""
    side = _Side(engine.name, engine.architecture, engine.dtype, lora_of(engine))
    if manifest.dtype is not engine.dtype:
        raise AdapterError(
            f"dtype is {manifest.dtype.value!r}, the engine computes in {engine.dtype.value!r}; {REPACK}"
        )
    if manifest.is_dora != (manifest.base_digest is not None):
        raise AdapterError(
            f"is_dora is {manifest.is_dora}, and base_digest {manifest.base_digest!r}: they contradict each other; {REPACK}"
        )
    weights = engine.files.get(WEIGHTS_NAME)
    if manifest.is_dora and (weights is None or manifest.base_digest != weights.sha256):
        raise AdapterError(
            f"base_digest is {manifest.base_digest}: the gains of this DoRA are for the weights of another engine; {REPACK}"
        )
    return side


def _claims(headers: Mapping[str, Header], side: _Side) -> _Claims:
    """Of tensors that the engine can compute with."""
    if not headers:
        raise AdapterError("the adapter has no tensor; train it, or leave it out")
    _check_tensors(headers, side)
    return _Claims(rank_of(headers), pieces_of(headers), any(name.endswith(".gain") for name in headers))


@lru_cache(maxsize=16)
def _claims_of_table(table: TensorTable, side: _Side) -> _Claims:
    return _claims(table.headers, side)


def _check_tensors(headers: Mapping[str, Header], side: _Side) -> None:
    known = set[str]()
    for stem, piece in piece_names(side.architecture):
        parts = {name.rpartition(".")[2]: header for name, header in _parts(stem, headers).items()}
        known |= {f"{stem}.{part}" for part in parts}
        if parts:
            _check_piece(stem, piece, parts, side)
    if unknown := sorted(headers.keys() - known):
        raise AdapterError(
            f"{unknown[0]} is nothing that engine {side.name!r} can adapt ({len(unknown)} such tensors): it has "
            f"{side.architecture.num_layers} layers, and experts are not adapted; take an adapter of this model"
        )


def _parts(stem: str, headers: Mapping[str, Header]) -> dict[str, Header]:
    names = [f"{stem}.{part}" for part in ("a", "b", "gain", "weight")]
    return {name: headers[name] for name in names if name in headers}


def _check_piece(stem: str, piece: str, parts: Mapping[str, Header], side: _Side) -> None:
    """`parts`: a, b, gain and weight, those that there are."""
    is_whole = parts.keys() == {"weight"} and piece in ("embed", "lm_head")
    is_pair = parts.keys() == {"a", "b"} or (parts.keys() == {"a", "b", "gain"} and piece != "embed")
    if not is_whole and not is_pair:
        raise AdapterError(
            f"{stem} has {', '.join(parts)}: it takes a and b, with a gain where it is not embed, or a weight alone where "
            f"it is embed or lm_head; {REPACK}"
        )
    out_size, in_size = piece_shape(side.architecture, piece)
    rank = 0
    if is_pair:
        shape = parts["a"][1]
        rank = shape[1 if piece == "embed" else 0] if len(shape) == 2 else 0
        check_rank(f"{stem}.a", rank, side.lora)
    shapes = {
        "a": (in_size, rank) if piece == "embed" else (rank, in_size),
        "b": (out_size, rank),
        "gain": (out_size,),
        "weight": (side.architecture.vocab_size, side.architecture.hidden_size),
    }
    for part, (dtype, shape) in parts.items():
        wanted = "F32" if part == "gain" else STORED[side.dtype]
        if shape != shapes[part]:
            raise AdapterError(
                f"{stem}.{part} has shape {shape}, engine {side.name!r} wants {shapes[part]}: it is an adapter of "
                "another base model; take one of this model"
            )
        if dtype != wanted:
            raise AdapterError(f"{stem}.{part} is of type {dtype}, engine {side.name!r} wants {wanted}; {REPACK}")


def _check_claims(manifest: AdapterManifest, claims: _Claims) -> None:
    """Whether the manifest says what the tensors are, as others go by it."""
    found = {
        "rank": (manifest.rank, claims.rank),
        "pieces": (manifest.pieces, claims.pieces),
        "is_dora": (manifest.is_dora, manifest.is_dora or claims.has_gains),
    }
    for field, (said, really) in found.items():
        if said != really:
            raise AdapterError(f"{field} is {said}, and the tensors say {really}; {REPACK}")
