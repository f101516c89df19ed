"""The C structs and functions of `builder/kernels/cpu/abi.h`, field by field."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from pathlib import Path
from typing import Final

from trierarch.builder.adapter import LAYER_PIECES
from trierarch.builder.errors import EngineError
from trierarch.python_backend.executors.cpu.openmp import load_openmp

ABI: Final = 5
"""Raised on both sides when a struct or a function changes."""

_Floats = ctypes.c_void_p
_Int = ctypes.c_int64
_Float = ctypes.c_double


class Format(IntEnum):
    """Of a matrix's elements; the first two also of activations, the first three of keys and values."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    INT4 = 3


class MatrixStruct(ctypes.Structure):
    """A matrix as the engine stores it, to be packed."""

    _fields_ = (
        ("format", _Int),
        ("out_features", _Int),
        ("in_features", _Int),
        ("is_gated", _Int),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
    )


class LinearStruct(ctypes.Structure):
    """A packed matrix and its bias."""

    _fields_ = (("format", _Int), ("weight", ctypes.c_void_p), ("bias", _Floats))


class RopeStruct(ctypes.Structure):
    """One rotary embedding."""

    _fields_ = (("inv_freq", _Floats), ("rotary_dim", _Int), ("attention_factor", _Float))


class LayerStruct(ctypes.Structure):
    """One layer's weights and flags."""

    _fields_ = (
        ("attn_norm", _Floats),
        ("q_norm", _Floats),
        ("k_norm", _Floats),
        ("post_attn_norm", _Floats),
        ("mlp_norm", _Floats),
        ("post_mlp_norm", _Floats),
        ("qkv", LinearStruct),
        ("o", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("window", _Int),
        ("rope", _Int),
    )


class ModelStruct(ctypes.Structure):
    """The whole decoder."""

    _fields_ = (
        ("element", _Int),
        ("kv_element", _Int),
        ("hidden", _Int),
        ("intermediate", _Int),
        ("vocab", _Int),
        ("num_heads", _Int),
        ("num_kv_heads", _Int),
        ("head_dim", _Int),
        ("num_layers", _Int),
        ("num_ropes", _Int),
        ("activation", _Int),
        ("norm_eps", _Float),
        ("attention_scale", _Float),
        ("attention_softcap", _Float),
        ("logit_softcap", _Float),
        ("embedding_scale", _Float),
        ("layers", ctypes.POINTER(LayerStruct)),
        ("ropes", ctypes.POINTER(RopeStruct)),
        ("norm", _Floats),
        ("embedding", ctypes.c_void_p),
        ("lm_head", LinearStruct),
        ("num_taps", _Int),
        ("taps", ctypes.POINTER(_Int)),
    )


class PieceStruct(ctypes.Structure):
    """What an adapter does to one piece of a stacked matrix."""

    _fields_ = (("rank", _Int), ("a", ctypes.c_void_p), ("b", ctypes.c_void_p), ("gain", _Floats))


class AdaptedLayerStruct(ctypes.Structure):
    """An adapter's pieces of one layer."""

    _fields_ = (*((piece, PieceStruct) for piece in LAYER_PIECES), ("data", ctypes.c_void_p), ("num_bytes", _Int))


class AdapterStruct(ctypes.Structure):
    """A whole adapter."""

    _fields_ = (
        ("z_width", _Int),
        ("layers", ctypes.c_void_p),
        ("lm_head", PieceStruct),
        ("own_lm_head", LinearStruct),
        ("embedding", ctypes.c_void_p),
        ("embedding_rank", _Int),
        ("embedding_a", ctypes.c_void_p),
        ("embedding_b", ctypes.c_void_p),
    )


class MoveStruct(ctypes.Structure):
    """A tensor of an adapter on its way to where the kernels want it."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("element", _Int),
        ("rows", _Int),
        ("columns", _Int),
        ("is_packed", _Int),
        ("num_zero_bytes", _Int),
    )


class StepStruct(ctypes.Structure):
    """One step's tokens and where their keys and values lie."""

    _fields_ = (
        ("kv", ctypes.c_void_p),
        ("kv_scales", _Floats),
        ("num_blocks", _Int),
        ("block_size", _Int),
        ("num_tokens", _Int),
        ("token_ids", ctypes.c_void_p),
        ("num_sequences", _Int),
        ("starts", ctypes.c_void_p),
        ("num_queries", ctypes.c_void_p),
        ("table_offsets", ctypes.c_void_p),
        ("block_ids", ctypes.c_void_p),
        ("adapters", ctypes.c_void_p),
    )


_SIGNATURES: Final[dict[str, tuple[type | None, tuple[type, ...]]]] = {
    "trierarch_packed_bytes": (_Int, (ctypes.POINTER(MatrixStruct),)),
    "trierarch_pack": (None, (ctypes.POINTER(MatrixStruct), ctypes.c_void_p, _Int)),
    "trierarch_move": (_Int, (ctypes.c_void_p, _Int)),
    "trierarch_decoder_new": (ctypes.c_void_p, (ctypes.POINTER(ModelStruct), _Int)),
    "trierarch_decoder_free": (None, (ctypes.c_void_p,)),
    "trierarch_decoder_hidden": (
        _Int,
        (ctypes.c_void_p, ctypes.POINTER(StepStruct), ctypes.c_void_p, ctypes.c_void_p),
    ),
    "trierarch_decoder_logits": (
        _Int,
        (ctypes.c_void_p, ctypes.c_void_p, _Int, ctypes.c_void_p, ctypes.c_void_p),
    ),
}


def open_library(path: Path) -> ctypes.CDLL:
    """Load a compiled library; its functions release the GIL.

    Raises:
        EngineError: it cannot be loaded, or was compiled for another version of this interface.
    """
    load_openmp()
    remedy = "rebuild the engine with: trierarch build"
    try:
        library = ctypes.CDLL(str(path))
        found = library.trierarch_abi
        found.restype, found.argtypes = _Int, ()
        version = found()
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path} cannot be loaded ({error}); {remedy}") from error
    if version != ABI:
        raise EngineError(f"{path} has interface {version}, this Trierarch calls {ABI}; {remedy}")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
