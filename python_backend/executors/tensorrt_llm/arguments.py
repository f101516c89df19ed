"""The keyword arguments of `LLM`, from an engine's record: objects become the configuration classes of the release."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import Flow, TensorRTLLM
from trierarch.python_backend.executors.tensorrt_llm.release import Release

ARGUMENTS_MODULE: Final = "tensorrt_llm.llmapi.llm_args"
QUANT_CONFIG_MODULE: Final = "tensorrt_llm.models.modeling_utils"

FindClass = Callable[[str, str], type[Any] | None]
"""(module, name) -> the class, or None where there is none."""

_CLASSES: Final[Mapping[str, str]] = {
    "attention_dp_config": "AttentionDpConfig",
    "cache_transceiver_config": "CacheTransceiverConfig",
    "calib_config": "CalibConfig",
    "cuda_graph_config": "CudaGraphConfig",
    "extended_runtime_perf_knob_config": "ExtendedRuntimePerfKnobConfig",
    "kv_cache_config": "KvCacheConfig",
    "kv_connector_config": "KvCacheConnectorConfig",
    "lora_config": "LoraConfig",
    "moe_config": "MoeConfig",
    "nvfp4_gemm_config": "Nvfp4GemmConfig",
    "peft_cache_config": "PeftCacheConfig",
    "quant_config": "QuantConfig",
    "scheduler_config": "SchedulerConfig",
    "torch_compile_config": "TorchCompileConfig",
}
"""Argument -> its class. What lies within it, such as a scheduler's dynamic_batch_config, the class makes itself."""

_SPECULATION: Final[Mapping[str, str]] = {
    "auto": "AutoDecodingConfig",
    "dflash": "DFlashDecodingConfig",
    "drafttarget": "DraftTargetDecodingConfig",
    "dspark": "DSparkDecodingConfig",
    "eagle": "EagleDecodingConfig",
    "eagle3": "Eagle3DecodingConfig",
    "lookahead": "LookaheadDecodingConfig",
    "medusa": "MedusaDecodingConfig",
    "mtp": "MTPDecodingConfig",
    "ngram": "NGramDecodingConfig",
    "pard": "PARDDecodingConfig",
    "sa": "SADecodingConfig",
}
"""decoding_type, in small letters and without underscores, which releases differ in -> its class."""
_MODEL_KEYS: Final = ("speculative_model", "speculative_model_dir")


def decoding_type(record: TensorRTLLM) -> str | None:
    """How the engine speculates, spelled as in `_SPECULATION`; None where it does not."""
    config = record.llm_args.get("speculative_config")
    return _spelled(config.get("decoding_type")) if isinstance(config, dict) else None


def with_host_cache(record: TensorRTLLM, host_bytes: int) -> TensorRTLLM:
    """The record of an engine whose KV cache goes on in `host_bytes` of host memory; 0 leaves it as it was built."""
    if not host_bytes:
        return record
    built = record.llm_args.get("kv_cache_config")
    config = {**(built if isinstance(built, dict) else {}), "host_cache_size": host_bytes}
    return record.model_copy(update={"llm_args": {**record.llm_args, "kv_cache_config": config}})


def llm_arguments(engine: Path, record: TensorRTLLM, release: Release, find_class: FindClass) -> dict[str, Any]:
    """What `LLM` is given beside the model.

    The library detokenises nothing, so that it needs no tokenizer unless it has to guide.

    Raises:
        EngineError: the release has no such class, or the class refuses its fields.
    """
    arguments: dict[str, Any] = {
        "tensor_parallel_size": record.tensor_parallel_size,
        "pipeline_parallel_size": record.pipeline_parallel_size,
        "skip_tokenizer_init": record.llm_args.get("guided_decoding_backend") is None,
    }
    if record.flow is Flow.PYTORCH:
        arguments["enable_iter_perf_stats"] = True
    for name, value in record.llm_args.items():
        arguments[name] = _argument(engine, name, value, release, find_class)
    return arguments


def _argument(engine: Path, name: str, value: JsonValue, release: Release, find_class: FindClass) -> Any:
    if not isinstance(value, dict):
        return value
    if name == "speculative_config":
        return _speculation(engine, value, release, find_class)
    if name not in _CLASSES:
        return value
    elsewhere = {"lora_config": release.lora_config_modules, "quant_config": (QUANT_CONFIG_MODULE,)}
    modules = elsewhere.get(name, (ARGUMENTS_MODULE,))
    return _made(f"llm_args.{name}", modules, _CLASSES[name], value, release, find_class)


def _speculation(engine: Path, value: dict[str, JsonValue], release: Release, find_class: FindClass) -> Any:
    kind = value.get("decoding_type")
    name = _SPECULATION.get(_spelled(kind))
    if name is None:
        raise EngineError(f"llm_args.speculative_config.decoding_type is {kind!r}: {_REBUILD}")
    fields = {key: field for key, field in value.items() if key != "decoding_type"}
    for key in _MODEL_KEYS:
        place = fields.get(key)
        if isinstance(place, str):  # A folder of the engine's, as `model` is; anything else is a name for a hub.
            fields[key] = str(engine / place) if (engine / place).is_dir() else place
    return _made("llm_args.speculative_config", (ARGUMENTS_MODULE,), name, fields, release, find_class)


def _made(
    place: str,
    modules: tuple[str, ...],
    name: str,
    fields: Mapping[str, JsonValue],
    release: Release,
    find_class: FindClass,
) -> Any:
    made = next((found for module in modules if (found := find_class(module, name)) is not None), None)
    if made is None:
        raise EngineError(f"{place} is a {name}, which TensorRT-LLM {release.name} does not have; {_REBUILD}")
    try:
        return made(**fields)
    except (TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise EngineError(f"{place} is none of TensorRT-LLM {release.name}: {error}; {_REBUILD}") from error


_REBUILD: Final = "rebuild the engine with: trierarch build --target tensorrt_llm"


def _spelled(kind: JsonValue) -> str:
    return str(kind).lower().replace("_", "")
