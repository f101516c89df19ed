"""TensorRT-LLM's LoRA tensors, `lora_weights` and `lora_config`, as a packed adapter of an engine.

Each row is one module of one layer. Its row of `lora_config` is (module id, layer, rank r); its row of `lora_weights` is
the module's input matrix (r, in) and then its output matrix (out, r), flattened, with zeros behind them up to the length
of the longest row. The adapter's scale is in the output matrix. Source: TensorRT-LLM's `hf_lora_convert.py` and the module
ids of its `LoraManager`; a fused module stacks its parts as that converter leaves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from trierarch.builder.adapter import AdapterTensors, piece_names, piece_shape, rounded_to
from trierarch.builder.adapter_check import check_adapter, lora_of, manifest_of
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import EngineManifest, Lora
from trierarch.builder.tensors import Array
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.adapter_inputs import LoraTensors

WEIGHTS: Final = "lora_weights"
CONFIG: Final = "lora_config"


@dataclass(frozen=True, slots=True)
class Module:
    """What a module id stands for."""

    name: str
    pieces: tuple[str, ...] = ()
    """Whose rows its output matrix stacks; none is a module that no engine here adapts."""


MODULES: Final[Mapping[int, Module]] = {
    0: Module("attn_qkv", ("q", "k", "v")),
    1: Module("attn_q", ("q",)),
    2: Module("attn_k", ("k",)),
    3: Module("attn_v", ("v",)),
    4: Module("attn_dense", ("o",)),
    5: Module("mlp_h_to_4h", ("gate",)),
    6: Module("mlp_4h_to_h", ("down",)),
    7: Module("mlp_gate", ("up",)),
    8: Module("cross_attn_qkv"),
    9: Module("cross_attn_q"),
    10: Module("cross_attn_k"),
    11: Module("cross_attn_v"),
    12: Module("cross_attn_dense"),
    13: Module("moe_h_to_4h"),
    14: Module("moe_4h_to_h"),
    15: Module("moe_gate"),
    16: Module("moe_router"),
    17: Module("mlp_router"),
    18: Module("mlp_gate_up", ("up", "gate")),
}


def read_lora(tensors: LoraTensors, engine: EngineManifest, source: str) -> AdapterTensors:
    """The adapter that a client sent, in the engine's type; `source` is what people are told that it came from.

    Raises:
        InvalidRequest: the tensors contradict each other, are another model's, hold NaN or are more than the engine takes.
    """
    lora = _lora(engine, tensors)
    _check_shapes(tensors)
    stems = {stem for stem, _ in piece_names(engine.architecture)}
    arrays: dict[str, Array] = {}
    for row, (module_id, layer, rank) in enumerate(tensors.config.tolist()):
        module = _module(module_id, row)
        if not 0 <= layer < engine.architecture.num_layers:
            raise _bad(row, "layer", layer, f"this engine has layers 0 to {engine.architecture.num_layers - 1}")
        _check_rank(rank, lora, row)
        names = [f"layers.{layer}.{piece}" for piece in module.pieces]
        if strays := [name for name in names if name not in stems]:
            raise _bad(row, "module", module.name, f"{strays[0]} is of experts, which are not adapted; leave it out")
        if twice := [name for name in names if f"{name}.a" in arrays]:
            raise _bad(row, "module", module.name, f"{twice[0]} is in a row before; send each module of a layer once")
        a, b = _matrices(tensors.weights[row], module, rank, engine, row)
        at = 0
        for name, piece in zip(names, module.pieces, strict=True):
            out_size, _ = piece_shape(engine.architecture, piece)
            arrays[f"{name}.a"], arrays[f"{name}.b"] = a, np.ascontiguousarray(b[at : at + out_size])
            at += out_size
    packed = AdapterTensors(manifest_of(arrays, engine, source), arrays)
    try:
        check_adapter(packed, engine)
    except AdapterError as error:
        raise InvalidRequest(WEIGHTS, tensors.weights.shape, str(error)) from error
    if packed.num_bytes > lora.host_bytes:
        raise InvalidRequest(
            WEIGHTS,
            tensors.weights.shape,
            f"is {packed.num_bytes} bytes in this engine's type, and it has room for {lora.host_bytes} of all adapters; "
            "send one of lower rank or fewer modules, or rebuild the engine with more room",
        )
    return packed


def _lora(engine: EngineManifest, tensors: LoraTensors) -> Lora:
    try:
        return lora_of(engine)
    except AdapterError as error:
        raise InvalidRequest(WEIGHTS, tensors.weights.shape, str(error)) from error


def _check_shapes(tensors: LoraTensors) -> None:
    weights, config = tensors.weights, tensors.config
    if weights.dtype != np.float16 or weights.ndim != 2:
        raise InvalidRequest(
            WEIGHTS, f"{weights.dtype}{list(weights.shape)}", "must be FP16 of shape (batch, rows, length)"
        )
    if config.dtype != np.int32 or config.ndim != 2 or config.shape[1] != 3:
        raise InvalidRequest(CONFIG, f"{config.dtype}{list(config.shape)}", "must be INT32 of shape (batch, rows, 3)")
    if len(weights) != len(config):
        raise InvalidRequest(CONFIG, len(config), f"must have a row for each row of {WEIGHTS}: {len(weights)}")


def _module(module_id: int, row: int) -> Module:
    module = MODULES.get(module_id)
    if module is None or not module.pieces:
        known = ", ".join(f"{number} {one.name}" for number, one in MODULES.items() if one.pieces)
        name = f"{module_id}" if module is None else f"{module_id} {module.name}"
        raise _bad(row, "module", name, f"engines here adapt {known}; leave it out")
    return module


def _check_rank(rank: int, lora: Lora, row: int) -> None:
    if rank < 1:
        raise _bad(row, "adapter size", rank, "must be at least 1; leave the row out")
    if rank > lora.max_rank:
        raise _bad(
            row, "adapter size", rank, f"this engine takes {lora.max_rank}; rebuild it with --max-lora-rank {rank}"
        )


def _matrices(numbers: Array, module: Module, rank: int, engine: EngineManifest, row: int) -> tuple[Array, Array]:
    """(rank, in) and (out, rank) of a row, in the engine's type."""
    shapes = [piece_shape(engine.architecture, piece) for piece in module.pieces]
    in_size, out_size = shapes[0][1], sum(shape[0] for shape in shapes)
    length = rank * (in_size + out_size)
    if len(numbers) < length:
        raise InvalidRequest(
            f"{WEIGHTS}[{row}]",
            len(numbers),
            f"{module.name} of rank {rank} has {length} numbers in this engine: {rank} x ({in_size} + {out_size}); "
            "send an adapter of this model",
        )
    if np.any(numbers[length:]):
        raise InvalidRequest(
            f"{WEIGHTS}[{row}]",
            len(numbers),
            f"there are numbers behind the {length} that {module.name} of rank {rank} has in this engine; send an "
            "adapter of this model",
        )
    own = numbers[:length].astype(np.float32)
    if not np.isfinite(own).all():
        raise InvalidRequest(f"{WEIGHTS}[{row}]", "NaN or infinity", "train the adapter anew, or send an earlier one")
    rounded = rounded_to(own, engine.dtype)
    return rounded[: rank * in_size].reshape(rank, in_size), rounded[rank * in_size :].reshape(out_size, rank)


def _bad(row: int, column: str, value: object, remedy: str) -> InvalidRequest:
    return InvalidRequest(f"{CONFIG}[{row}]", f"{column} {value}", remedy)
