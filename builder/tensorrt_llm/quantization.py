"""Formats of quantised weights, keys and values that TensorRT-LLM runs: what each is called, where, and what it takes.

Names: QuantAlgo of tensorrt_llm/quantization/mode.py. Which flow runs which: PretrainedModel.from_checkpoint of the engine
flow; get_quant_method of tensorrt_llm/_torch/modules/linear.py of the PyTorch flow, which has no SmoothQuant and of the
weight-only formats AWQ alone as a checkpoint says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import Architecture, Flow, KvType, WeightType
from trierarch.builder.mapping import Mapping as Split
from trierarch.builder.tensorrt_llm.compatibility import LEAST_ARCHITECTURE, architecture_number


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store weights."""

    weights: WeightType
    algo: str
    """As QuantAlgo spells it."""
    flows: tuple[Flow, ...]
    is_calibrated: bool
    """Whether nvidia-modelopt works it out from activations; otherwise TensorRT-LLM rounds the weights as it compiles."""
    block_sizes: tuple[int, ...] = ()
    """Inputs that share a scale: the first that divides what a GPU has of each matrix. None where all of a row share one."""


_BOTH: Final = (Flow.ENGINE, Flow.PYTORCH)
FORMATS: Final[Mapping[WeightType, Format]] = {
    one.weights: one
    for one in (
        Format(WeightType.INT8, "W8A16", (Flow.ENGINE,), is_calibrated=False),
        Format(WeightType.INT4, "W4A16", (Flow.ENGINE,), is_calibrated=False),
        Format(WeightType.INT8_SQ, "W8A8_SQ_PER_CHANNEL", (Flow.ENGINE,), is_calibrated=True),
        Format(WeightType.INT4_AWQ, "W4A16_AWQ", _BOTH, is_calibrated=True, block_sizes=(128, 64)),
        Format(WeightType.FP8, "FP8", _BOTH, is_calibrated=True),
        Format(WeightType.NVFP4, "NVFP4", _BOTH, is_calibrated=True, block_sizes=(16,)),
    )
}
KV_ALGO: Final = "FP8"
"""Of 8-bit keys and values."""


def choose_format(config: BuildConfig, flow: Flow) -> Format | None:
    """The format that `config.quantization` names; None is none.

    Raises:
        ConfigError: this flow does not run it.
    """
    asked = config.quantization
    if asked is None:
        return None
    found = FORMATS.get(asked)
    if found is None or flow not in found.flows:
        known = ", ".join(one.weights.value for one in FORMATS.values() if flow in one.flows)
        raise ConfigError(
            f"quantization is {asked.value!r}: the {flow.value} flow of TensorRT-LLM takes {known}; choose one of them"
        )
    return found


def kv_algo(config: BuildConfig) -> str | None:
    """How keys and values are quantised, as QuantAlgo spells it; None leaves them in the type of the activations.

    Raises:
        ConfigError: not in a way that is built.
    """
    if config.kv_cache_dtype is KvType.INT8:
        raise ConfigError(
            "kv_cache_dtype is 'int8': for TensorRT-LLM it is fp8, or left out for that of the activations"
        )
    return KV_ALGO if config.kv_cache_dtype is KvType.FP8 else None


def check_hardware(algos: tuple[str | None, ...], architecture: str | None) -> None:
    """Whether GPUs such as sm_90 multiply what is asked for; None is not known, and passes.

    Raises:
        ConfigError: they do not.
    """
    for algo in algos:
        least = LEAST_ARCHITECTURE.get(algo or "")
        if architecture is not None and least is not None and architecture_number(architecture) < least:
            raise ConfigError(
                f"gpu_architecture is {architecture!r}: {algo} needs sm_{least} or later; choose another --quantization or "
                "--kv-cache-dtype, or say which GPU will run the engine with --gpu-architecture"
            )


def choose_block_size(quantization: Format, flow: Flow, architecture: Architecture, split: Split) -> int | None:
    """How many inputs share a scale.

    Raises:
        ConfigError: no size divides what a GPU has of each matrix.
    """
    if not quantization.block_sizes:
        return None
    places = split.tensor_parallel_size
    inner = architecture.intermediate_size if architecture.moe is None else architecture.moe.intermediate_size
    widths = {architecture.hidden_size, architecture.num_heads * architecture.head_dim // places, inner // places}
    if flow is Flow.ENGINE:
        # Needless, since nobody splits these; nvidia-modelopt wants it all the same before it writes ranks.
        widths.add(architecture.hidden_size // places)
    for size in quantization.block_sizes:
        if not any(width % size for width in widths):
            return size
    sizes = " or ".join(map(str, quantization.block_sizes))
    raise ConfigError(
        f"quantization is {quantization.weights.value!r}: a GPU's matrices have {', '.join(map(str, sorted(widths)))} "
        f"inputs, and blocks of {sizes} must divide all of them; choose fp8, or another --tensor-parallel-size"
    )
