"""What a PEFT file's tensors will be packed as, decided by its headers alone; nothing larger than the engine allows passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from trierarch.builder.adapter import piece_shape
from trierarch.builder.adapter_check import STORED, check_rank, lora_of
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import Architecture, EngineManifest
from trierarch.builder.peft_config import PeftConfig
from trierarch.builder.peft_names import PeftModule
from trierarch.builder.safetensors_header import Header

_READ: Final = ("F32", "F16", "BF16")
_RESAVE: Final = "save the adapter anew with PEFT"


def plan_headers(
    modules: Iterable[PeftModule], found: Mapping[str, Header], config: PeftConfig, engine: EngineManifest
) -> dict[str, Header]:
    """Type and shape of each packed tensor.

    Raises:
        AdapterError: the engine takes no adapters, or a tensor is missing, of another type, shape or rank than it must be.
    """
    lora, planned = lora_of(engine), dict[str, Header]()
    for module in modules:
        rank = _check_parts(module, found, config)
        if rank:
            check_rank(module.name, rank, lora)
        _check_headers(module, found, rank, engine)
        for stem, piece in module.pieces:
            planned |= _packed(module, stem, piece, rank, engine)
    _check_tying(planned, config, engine.architecture)
    return planned


def _check_parts(module: PeftModule, found: Mapping[str, Header], config: PeftConfig) -> int:
    """The module's rank; 0 where it is whole."""
    parts = module.tensors.keys() - {"base"}
    if parts == {"whole"} and module.pieces[0][1] in ("embed", "lm_head"):
        return 0
    a, b = ("embedding_a", "embedding_b") if module.is_embedding else ("a", "b")
    wanted = {a, b, "magnitude"} if config.use_dora else {a, b}
    if parts != wanted:
        raise AdapterError(
            f"{module.name} has {', '.join(sorted(module.tensors.values()))}: with use_dora {config.use_dora} it takes "
            f"{' and '.join(sorted(f'lora_{part}' for part in wanted))}, no more and no less; {_RESAVE}"
        )
    shape = found[module.tensors[a]][1]
    rank = shape[0] if len(shape) == 2 else 0
    if rank != config.rank(module.name):
        raise AdapterError(
            f"{module.tensors[a]} has shape {shape}, and its configuration says rank {config.rank(module.name)}: they are "
            f"not of one adapter; {_RESAVE}"
        )
    return rank


def _check_headers(module: PeftModule, found: Mapping[str, Header], rank: int, engine: EngineManifest) -> None:
    architecture = engine.architecture
    out_size = sum(piece_shape(architecture, piece)[0] for _, piece in module.pieces)
    in_size = piece_shape(architecture, module.pieces[0][1])[1]
    weight = (in_size, out_size) if module.is_embedding else (out_size, in_size)
    shapes = {
        "a": (rank, in_size),
        "b": (out_size, rank),
        "embedding_a": (rank, in_size),
        "embedding_b": (out_size, rank),
        "magnitude": (out_size,),
        "whole": weight,
        "base": weight,
    }
    for part, name in module.tensors.items():
        dtype, shape = found[name]
        if shape != shapes[part]:
            raise AdapterError(
                f"{name} has shape {shape}, engine {engine.name!r} wants {shapes[part]}: it is an adapter of another base "
                "model, or of one with another vocabulary; take one of this model"
            )
        if dtype not in _READ:
            raise AdapterError(f"{name} is of type {dtype}: {', '.join(_READ)} are read; save it as one of these")


def _packed(module: PeftModule, stem: str, piece: str, rank: int, engine: EngineManifest) -> dict[str, Header]:
    dtype = STORED[engine.dtype]
    out_size, in_size = piece_shape(engine.architecture, piece)
    if module.is_embedding and (module.is_dora or not rank):
        return {f"{stem}.weight": (dtype, (in_size, out_size))}
    if not rank:
        return {f"{stem}.weight": (dtype, (out_size, in_size))}
    a_shape = (in_size, rank) if module.is_embedding else (rank, in_size)
    headers = {f"{stem}.a": (dtype, a_shape), f"{stem}.b": (dtype, (out_size, rank))}
    return headers | ({f"{stem}.gain": ("F32", (out_size,))} if module.is_dora else {})


def _check_tying(planned: Mapping[str, Header], config: PeftConfig, architecture: Architecture) -> None:
    has_embed, has_lm_head = (any(name.startswith(stem) for name in planned) for stem in ("embed.", "lm_head."))
    if config.ensure_weight_tying and architecture.tie_embeddings and has_embed and not has_lm_head:
        raise AdapterError(
            "ensure_weight_tying is true, and the file has the embeddings' tensors without those of lm_head that go with "
            "them; save it with PEFT 0.18 or newer, which writes both, or merge it into the checkpoint and build that"
        )
