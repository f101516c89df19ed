"""Library: the installed TensorRT-LLM, as the executor calls it. It is imported when this is made, and not before."""

from __future__ import annotations

import logging
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from trierarch.builder.errors import EngineError, ResourceError
from trierarch.builder.manifest import Flow, TensorRTLLM
from trierarch.python_backend.executors.tensorrt_llm.arguments import llm_arguments
from trierarch.python_backend.executors.tensorrt_llm.llm import LLM, Generation
from trierarch.python_backend.executors.tensorrt_llm.release import Release
from trierarch.python_backend.request import Request, Retention
from trierarch.python_backend.scheduling.queue import MAX_PRIORITY

logger = logging.getLogger(__name__)

_LLM_MODULES: Final = {Flow.ENGINE: "tensorrt_llm._tensorrt_engine", Flow.PYTORCH: "tensorrt_llm"}
_SAMPLING_MODULE: Final = "tensorrt_llm.sampling_params"
_REQUEST_MODULE: Final = "tensorrt_llm.executor.request"
_BINDINGS_MODULE: Final = "tensorrt_llm.bindings.executor"


class Library:
    """One flow of one release."""

    def __init__(self, record: TensorRTLLM, release: Release) -> None:
        """Import it.

        Raises:
            EngineError: it cannot be imported, or has not what the release has.
        """
        self._record = record
        self._release = release
        self._llm_class = _required(_LLM_MODULES[record.flow], "LLM")
        self._sampling_params = _required(_SAMPLING_MODULE, "SamplingParams")
        self._guided_decoding_params = _required(_SAMPLING_MODULE, "GuidedDecodingParams")
        self._lora_request = _required(_REQUEST_MODULE, "LoRARequest")
        self._retention_config = _find(_BINDINGS_MODULE, "KvCacheRetentionConfig")

    def open(self, engine: Path) -> LLM:
        """Load the engine; takes seconds to minutes.

        Raises:
            EngineError: the library refuses it.
            ResourceError: the GPU has no room for it.
        """
        arguments = llm_arguments(engine, self._record, self._release, _find)
        try:
            llm: LLM = self._llm_class(model=str(engine / self._record.model), **arguments)
        except Exception as error:
            if "out of memory" in str(error).lower():
                raise ResourceError(
                    f"TensorRT-LLM found no room for engine {engine.name!r} ({error}); free GPU memory, or rebuild the engine "
                    "with a smaller kv_cache_memory_fraction"
                ) from error
            raise EngineError(
                f"TensorRT-LLM {self._release.name} cannot open engine {engine.name!r} ({type(error).__name__}: {error}); "
                "rebuild the engine with: trierarch build --target tensorrt_llm"
            ) from error
        return llm

    def lora_request(self, name: str, task_id: int, path: Path) -> Any:
        """What a request names its adapter by: a PEFT directory, and an id that the library's caches go by."""
        return self._lora_request(lora_name=name, lora_int_id=task_id, lora_path=str(path))

    def generate(
        self, llm: LLM, request: Request, sampling: dict[str, Any], lora_request: Any | None, cache_salt: str
    ) -> Generation:
        """Start a sequence; `sampling` as `sampling_arguments` gives it, `cache_salt` in place of the request's.

        Raises:
            Exception: whatever the library raises.
        """
        if "embedding_bias" in sampling:
            import torch

            sampling = {**sampling, "embedding_bias": torch.from_numpy(sampling["embedding_bias"])}
        if "guided_decoding" in sampling:
            guide = self._guided_decoding_params(**sampling["guided_decoding"])
            sampling = {**sampling, "guided_decoding": guide}
        arguments: dict[str, Any] = {"sampling_params": self._sampling_params(**sampling), "streaming": True}
        if lora_request is not None:
            arguments["lora_request"] = lora_request
        if self._release.takes_cache_salt and cache_salt:
            arguments["cache_salt"] = cache_salt
        if (retained := self._retained(request)) is not None:
            arguments["kv_cache_retention_config"] = retained
        if self._release.takes_priority:
            arguments["priority"] = (1 + request.priority / MAX_PRIORITY) / 2  # in [0, 1], rising; 0.5 is neutral
        return llm.generate_async(list(request.prompt_token_ids), **arguments)

    def _retained(self, request: Request) -> Any | None:
        """Which cached blocks a request wants kept; a hint, which fails no request that the library refuses it of."""
        if request.retention is None or self._retention_config is None:
            return None
        try:
            return _retention_config(self._retention_config, request.retention)
        except Exception as error:  # noqa: BLE001 - a check in C++ may raise anything
            logger.warning("request %s: its wishes for cached blocks are left out: %s", request.request_id, error)
            return None


def _retention_config(made: Any, retention: Retention) -> Any:
    """In the words of `made`, which are those of every release."""
    ranges = [
        made.TokenRangeRetentionConfig(
            token_start=each.start,
            token_end=each.end,
            priority=each.priority,
            duration_ms=_milliseconds(each.duration_ms),
        )
        for each in retention.ranges
    ]
    decode: dict[str, Any] = {}
    if retention.decode_priority is not None:
        decode["decode_retention_priority"] = retention.decode_priority
    if retention.decode_duration_ms is not None:
        decode["decode_duration_ms"] = _milliseconds(retention.decode_duration_ms)
    return made(token_range_retention_configs=ranges, **decode)


def _milliseconds(count: int | None) -> timedelta | None:
    return None if count is None else timedelta(milliseconds=count)


def _find(module: str, name: str) -> type[Any] | None:
    try:
        found: type[Any] | None = getattr(import_module(module), name, None)
    except (ImportError, OSError):
        return None
    return found


def _required(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # a missing library of CUDA's is any of these
        raise EngineError(
            f"{module}.{name} cannot be imported ({error}); repair the installation of TensorRT-LLM, or serve the engine in "
            "a container that has it"
        ) from error
