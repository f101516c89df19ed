"""Parameters: what config.pbtxt's `parameters` may set, typed and complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, ValidationError

from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import Frozen
from trierarch.python_backend.executors.offload.config import DEFAULT_DISK_BYTES
from trierarch.python_backend.triton.contract import Role
from trierarch.python_backend.triton.path_list import paths_of

OF_TRITON: Final = {"FORCE_CPU_ONLY_INPUT_TENSORS", "EXECUTION_ENV_PATH"}
"""Parameters that Triton's Python backend reads itself."""


class Parameters(Frozen):
    """Names and defaults are TensorRT-LLM's where it has them. Unknown names are refused: they would be lost."""

    role: Role | None = None
    """What the model does; None reads it from the model's name."""
    exclude_input_in_output: bool = False
    """Whether unstreamed answers leave out the prompt when the request does not say."""
    cancellation_check_period_ms: int = Field(default=100, gt=0)
    stats_check_period_ms: int = Field(default=100, gt=0)
    drain_timeout_seconds: float = Field(default=30.0, ge=0)
    """How long running requests may take to finish when the model is unloaded."""
    tensorrt_llm_model_name: str = Role.TENSORRT_LLM.value
    """The model that tensorrt_llm_bls asks."""
    accumulate_tokens: bool = False
    """Whether tensorrt_llm_bls streams the text so far in place of what is new."""
    add_special_tokens: bool = True
    """Whether preprocessing adds the tokenizer's special tokens, such as a beginning-of-sequence token."""
    skip_special_tokens: bool = True
    """Whether postprocessing leaves special tokens out of the text."""
    adapter_directories: Annotated[tuple[Path, ...], BeforeValidator(paths_of)] = ()
    """Where adapters are found beside the engine's own: separated as in PATH, or a list in JSON; relative to the repository."""
    allow_adapter_uploads: bool = True
    """Whether clients may send an adapter as lora_weights and lora_config, as TensorRT-LLM's do."""
    adapter_upload_directory: Path | None = None
    """Where they are kept, relative to the repository; None keeps them for as long as the model is loaded."""
    max_uploaded_adapters: int = Field(default=1000, ge=0)
    prefix_cache_directory: Path | None = None
    """Where cached prefixes are kept while the model is not loaded, relative to the repository; None forgets them."""
    prefix_cache_bytes: int = Field(default=128 << 20, ge=0)
    """Of keys and values that are kept there: those of the most recently used prefixes."""
    kv_cache_host_memory_bytes: int = Field(default=0, ge=0)
    """Of host memory for blocks that the KV cache has no room for; 0 forgets them."""
    kv_cache_disk_directory: Path | None = None
    """Where those go next, relative to the repository: of this model alone. None forgets them."""
    kv_cache_disk_bytes: int = Field(default=DEFAULT_DISK_BYTES, ge=0)
    """Of files there."""
    adapter: str = ""
    """The adapter that a model of role `adapter` serves; empty is the one of the model's own name."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a model configuration as Triton gives it, parsed from JSON.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        raw = {
            name: entry["string_value"]
            for name, entry in config.get("parameters", {}).items()
            if name not in OF_TRITON and entry.get("string_value")
        }
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"model {config['name']!r}: parameter {name} is {raw.get(name)!r}: {first['msg']}; "
                f"this backend reads {', '.join(cls.model_fields)}"
            ) from None
