"""Library: the installed TensorRT-LLM, as the executor calls it. It is imported when this is made, and not before."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Final

from trierarch.builder.errors import EngineError, ResourceError
from trierarch.builder.manifest import Flow, TensorRTLLM
from trierarch.python_backend.executors.tensorrt_llm.arguments import llm_arguments
from trierarch.python_backend.executors.tensorrt_llm.llm import LLM, Generation
from trierarch.python_backend.executors.tensorrt_llm.release import Release
from trierarch.python_backend.request import Request
from trierarch.python_backend.scheduling.queue import MAX_PRIORITY

_LLM_MODULES: Final = {Flow.ENGINE: "tensorrt_llm._tensorrt_engine", Flow.PYTORCH: "tensorrt_llm"}
_SAMPLING_MODULE: Final = "tensorrt_llm.sampling_params"
_REQUEST_MODULE: Final = "tensorrt_llm.executor.request"


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

    def generate(self, llm: LLM, request: Request, sampling: dict[str, Any], lora_request: Any | None) -> Generation:
        """Start a sequence; `sampling` as `sampling_arguments` gives it.

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
        if self._release.takes_cache_salt and request.cache_salt:
            arguments["cache_salt"] = request.cache_salt
        if self._release.takes_priority:
            arguments["priority"] = (1 + request.priority / MAX_PRIORITY) / 2  # in [0, 1], rising; 0.5 is neutral
        return llm.generate_async(list(request.prompt_token_ids), **arguments)


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
