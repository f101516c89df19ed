"""How a Hugging Face checkpoint says that its weights are quantised: what of that is read, and what is refused by name.

Formats and where they come from:

    fp8                  `weight_block_size` or one scale a matrix: transformers' FineGrainedFP8Config and vLLM's Fp8Config
    compressed-tensors   `config_groups` of compressed-tensors' QuantizationConfig and QuantizationArgs
    modelopt             `quant_algo`, in config.json or in hf_quant_config.json: nvidia-modelopt's convert_hf_config.py
    gptq, awq            transformers' GPTQConfig and AwqConfig

Lists of modules that are left out (`modules_to_not_convert`, `ignored_layers`, `ignore`, `exclude_modules`) are not read:
names and types of tensors say whether they are quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict

from trierarch.builder.coded_tensor import CodedFormat
from trierarch.builder.codes import Block
from trierarch.builder.errors import CheckpointError
from trierarch.builder.fp8_tensors import Fp8Format
from trierarch.builder.int4_tensors import Int4Format, Layout
from trierarch.builder.json_file import read_json_if_present
from trierarch.builder.manifest import GROUP_SIZE, PositiveInt
from trierarch.builder.validation import validated

_KEY: Final = "quantization_config"
_MODELOPT_FILE: Final = "hf_quant_config.json"
_MODELOPT: Final = "modelopt"
_MODELOPT_ALGOS: Final = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", None)
"""None quantises keys and values alone."""
_FLOAT_FORMATS: Final = ("float-quantized", "naive-quantized")
_INT_FORMAT: Final = "pack-quantized"
_REMEDY: Final = "take the original checkpoint, or its FP8 or GGUF"


class _Raw(BaseModel):
    """What decides the numbers; the rest is for calibration, or for other libraries' kernels."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Fp8(_Raw):
    weight_block_size: tuple[PositiveInt, PositiveInt] | None = None
    fmt: str = "e4m3"


class _Gptq(_Raw):
    bits: int
    group_size: int
    sym: bool = True
    checkpoint_format: str = "gptq"


class _Awq(_Raw):
    bits: int = 4
    group_size: int = 128
    zero_point: bool = True
    version: str = "gemm"


def _sizes(written: object) -> object:
    """128x128, as compressed-tensors also writes it, as two numbers."""
    return written.split("x") if isinstance(written, str) else written


class _Weights(_Raw):
    """QuantizationArgs."""

    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None
    actorder: str | bool | None = None
    block_structure: Annotated[tuple[PositiveInt, PositiveInt] | None, BeforeValidator(_sizes)] = None


class _Group(_Raw):
    weights: _Weights | None = None
    format: str | None = None


class _CompressedTensors(_Raw):
    format: str = _FLOAT_FORMATS[0]
    config_groups: dict[str, _Group]
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


def read_quantization(config: Mapping[str, Any], directory: Path) -> CodedFormat | None:
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
    return reader(raw)


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


def _read_fp8(raw: Mapping[str, Any]) -> CodedFormat:
    settings = validated(_Fp8, raw, f"{_KEY}.")
    if settings.fmt != "e4m3":
        raise _refusal("fmt", settings.fmt, "e4m3")
    return Fp8Format(settings.weight_block_size)


def _read_modelopt(raw: Mapping[str, Any]) -> CodedFormat:
    algo = raw.get("quant_algo")
    if algo not in _MODELOPT_ALGOS:
        raise _refusal("quant_algo", algo, ", ".join(one for one in _MODELOPT_ALGOS if one))
    return Fp8Format(None)


def _read_gptq(raw: Mapping[str, Any]) -> CodedFormat:
    settings = validated(_Gptq, raw, f"{_KEY}.")
    if settings.checkpoint_format not in ("gptq", "gptq_v2"):
        raise _refusal("checkpoint_format", settings.checkpoint_format, "gptq and gptq_v2")
    group_size = _groups(settings.bits, settings.group_size)
    is_first = settings.checkpoint_format == "gptq"
    return Int4Format(Layout.GPTQ, group_size, has_zeros=not settings.sym, zeros_less_one=is_first)


def _read_awq(raw: Mapping[str, Any]) -> CodedFormat:
    settings = validated(_Awq, raw, f"{_KEY}.")
    if settings.version.lower() != "gemm":
        raise _refusal("version", settings.version, "gemm")
    return Int4Format(Layout.AWQ, _groups(settings.bits, settings.group_size), has_zeros=settings.zero_point)


def _groups(bits: int, group_size: int, where: str = "", bits_name: str = "bits") -> int | None:
    """Inputs that share a scale; None is all of a row."""
    if bits != 4:
        raise _refusal(f"{where}{bits_name}", bits, "4")
    if group_size == -1:
        return None
    if group_size <= 0 or group_size % GROUP_SIZE:
        raise _refusal(f"{where}group_size", group_size, f"-1 and multiples of {GROUP_SIZE}")
    return group_size


def _read_compressed_tensors(raw: Mapping[str, Any]) -> CodedFormat:
    settings = validated(_CompressedTensors, raw, f"{_KEY}.")
    if settings.transform_config:
        raise _refusal("transform_config", "set", "checkpoints whose activations are not rotated")
    sparsity = (settings.sparsity_config or {}).get("format", "dense")
    if sparsity != "dense":
        raise _refusal("sparsity_config.format", sparsity, "dense")
    forms = {
        _group_format(f"config_groups.{name}.weights.", group.format or settings.format, group.weights)
        for name, group in settings.config_groups.items()
        if group.weights is not None
    }
    if any(isinstance(one, Fp8Format) and one.block is not None for one in forms):
        forms.discard(Fp8Format(None))  # which the other reads too
    if len(forms) > 1:
        raise _refusal("config_groups", " and ".join(sorted(one.label for one in forms)), "one format")
    return forms.pop() if forms else Fp8Format(None)


def _group_format(where: str, form: str, weights: _Weights) -> Fp8Format | Int4Format:
    if form in _FLOAT_FORMATS:
        return Fp8Format(_float_block(where, weights))
    if form != _INT_FORMAT:
        raise _refusal("format", form, f"{_FLOAT_FORMATS[0]} and {_INT_FORMAT}")
    if weights.type != "int":
        raise _refusal(f"{where}type", weights.type, "int in this format")
    if weights.actorder in (True, "group", "dynamic"):
        raise _refusal(f"{where}actorder", weights.actorder, "groups that lie side by side")
    if weights.strategy not in (None, "group", "channel"):
        raise _refusal(f"{where}strategy", weights.strategy, "group and channel")
    group_size = -1 if weights.strategy == "channel" or weights.group_size is None else weights.group_size
    group_size_or_row = _groups(weights.num_bits, group_size, where, "num_bits")
    return Int4Format(Layout.PACKED, group_size_or_row, has_zeros=not weights.symmetric)


def _float_block(where: str, weights: _Weights) -> Block | None:
    if (weights.type, weights.num_bits) != ("float", 8):
        raise _refusal(f"{where}type", f"{weights.type} of {weights.num_bits} bits", "float of 8 bits")
    if not weights.symmetric:
        raise _refusal(f"{where}symmetric", False, "true")
    if weights.strategy not in (None, "tensor", "channel", "block"):
        raise _refusal(f"{where}strategy", weights.strategy, "tensor, channel and block")
    if weights.strategy != "block":
        return None
    if weights.block_structure is None:
        raise _refusal(f"{where}block_structure", None, "two numbers")
    return weights.block_structure


def _refusal(field: str, value: object, known: str) -> CheckpointError:
    return CheckpointError(f"{_KEY}.{field} is {value!r}: this builder reads {known}; {_REMEDY}")


_READERS: Final = {
    "fp8": _read_fp8,
    "compressed-tensors": _read_compressed_tensors,
    _MODELOPT: _read_modelopt,
    "gptq": _read_gptq,
    "awq": _read_awq,
}
