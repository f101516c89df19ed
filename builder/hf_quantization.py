"""How a Hugging Face checkpoint says that its weights are quantised: what of that is read, and what is refused by name.

Formats and where they come from:

    fp8                  `weight_block_size` or one scale a matrix: transformers' FineGrainedFP8Config and vLLM's Fp8Config
    compressed-tensors   `config_groups` of compressed-tensors' QuantizationConfig and QuantizationArgs
    modelopt             `quant_algo`, in config.json or in hf_quant_config.json: nvidia-modelopt's convert_hf_config.py

Lists of modules that are left out (`modules_to_not_convert`, `ignored_layers`, `ignore`, `exclude_modules`) are not read:
the type of a tensor says whether it is quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict

from trierarch.builder.codes import Block
from trierarch.builder.errors import CheckpointError
from trierarch.builder.json_file import read_json_if_present
from trierarch.builder.manifest import PositiveInt
from trierarch.builder.validation import validated

_KEY: Final = "quantization_config"
_MODELOPT_FILE: Final = "hf_quant_config.json"
_MODELOPT: Final = "modelopt"
_MODELOPT_ALGOS: Final = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", None)
"""None quantises keys and values alone."""
_REMEDY: Final = "take the original checkpoint, or its FP8 or GGUF"


@dataclass(frozen=True, slots=True)
class HfQuantization:
    """Of a checkpoint some of whose matrices are E4M3."""

    block: Block | None
    """Rows and inputs that share a scale; None where a row or a matrix has one."""


class _Raw(BaseModel):
    """What decides the numbers; the rest is for calibration, or for other libraries' kernels."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Fp8(_Raw):
    weight_block_size: tuple[PositiveInt, PositiveInt] | None = None
    fmt: str = "e4m3"


def _sizes(written: object) -> object:
    """128x128, as compressed-tensors also writes it, as two numbers."""
    return written.split("x") if isinstance(written, str) else written


class _Weights(_Raw):
    """QuantizationArgs."""

    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    block_structure: Annotated[tuple[PositiveInt, PositiveInt] | None, BeforeValidator(_sizes)] = None


class _Group(_Raw):
    weights: _Weights | None = None
    format: str | None = None


class _CompressedTensors(_Raw):
    format: str = "float-quantized"
    config_groups: dict[str, _Group]
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


def read_quantization(config: Mapping[str, Any], directory: Path) -> HfQuantization | None:
    """What `config`, a config.json, and the files beside it say; None where nothing is quantised.

    Raises:
        CheckpointError: it is quantised in a way that is not read, or says so in a way that is not understood.
    """
    raw = _find(config, directory)
    if raw is None:
        return None
    method = raw.get("quant_method")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise _refusal("quant_method", method, ", ".join(_READERS))
    return HfQuantization(reader(raw))


def dequantized_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config.json of a checkpoint that is not quantised."""
    plain = {key: value for key, value in config.items() if key != _KEY}
    if isinstance(text := plain.get("text_config"), Mapping):
        plain["text_config"] = {key: value for key, value in text.items() if key != _KEY}
    return plain


def _find(config: Mapping[str, Any], directory: Path) -> Mapping[str, Any] | None:
    """The section that says it; a multimodal checkpoint may have it in that of its text model."""
    for place in (config, config.get("text_config")):
        raw = place.get(_KEY) if isinstance(place, Mapping) else None
        if raw is not None:
            if not isinstance(raw, Mapping):
                raise CheckpointError(f"config.json: {_KEY} is not an object; download the checkpoint again")
            return raw
    said = read_json_if_present(directory / _MODELOPT_FILE).get("quantization")
    return {**said, "quant_method": _MODELOPT} if isinstance(said, Mapping) else None


def _read_fp8(raw: Mapping[str, Any]) -> Block | None:
    settings = validated(_Fp8, raw, f"{_KEY}.")
    if settings.fmt != "e4m3":
        raise _refusal("fmt", settings.fmt, "e4m3")
    return settings.weight_block_size


def _read_modelopt(raw: Mapping[str, Any]) -> Block | None:
    algo = raw.get("quant_algo")
    if algo not in _MODELOPT_ALGOS:
        raise _refusal("quant_algo", algo, ", ".join(one for one in _MODELOPT_ALGOS if one))
    return None


def _read_compressed_tensors(raw: Mapping[str, Any]) -> Block | None:
    settings = validated(_CompressedTensors, raw, f"{_KEY}.")
    if settings.transform_config:
        raise _refusal("transform_config", "set", "checkpoints whose activations are not rotated")
    sparsity = (settings.sparsity_config or {}).get("format", "dense")
    if sparsity != "dense":
        raise _refusal("sparsity_config.format", sparsity, "dense")
    blocks: set[Block] = set()
    for name, group in settings.config_groups.items():
        if group.weights is not None:
            _check_group(f"config_groups.{name}", group.format or settings.format, group.weights)
            block = _block(f"config_groups.{name}", group.weights)
            blocks |= set() if block is None else {block}
    if len(blocks) > 1:
        raise _refusal("config_groups", " and ".join(map(str, sorted(blocks))), "blocks of one size")
    return next(iter(blocks), None)


def _check_group(name: str, form: str, weights: _Weights) -> None:
    if form not in ("float-quantized", "naive-quantized"):
        raise _refusal("format", form, "float-quantized")
    if (weights.type, weights.num_bits) != ("float", 8):
        raise _refusal(f"{name}.weights", f"{weights.type} of {weights.num_bits} bits", "float of 8 bits")
    if not weights.symmetric:
        raise _refusal(f"{name}.weights.symmetric", False, "true")


def _block(name: str, weights: _Weights) -> Block | None:
    if weights.strategy not in (None, "tensor", "channel", "block"):
        raise _refusal(f"{name}.weights.strategy", weights.strategy, "tensor, channel and block")
    if weights.strategy != "block":
        return None
    if weights.block_structure is None:
        raise _refusal(f"{name}.weights.block_structure", None, "two numbers")
    return weights.block_structure


def _refusal(field: str, value: object, known: str) -> CheckpointError:
    return CheckpointError(f"{_KEY}.{field} is {value!r}: this builder reads {known}; {_REMEDY}")


_READERS: Final = {"fp8": _read_fp8, "compressed-tensors": _read_compressed_tensors, _MODELOPT: _read_modelopt}
