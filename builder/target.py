"""Which options are whose: what only TensorRT-LLM has is refused where a torch engine is asked for."""

from __future__ import annotations

from typing import Final

from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import WeightType

TENSORRT_LLM_FIELDS: Final = (
    "tensorrt_llm_version",
    "tensorrt_llm_flow",
    "gpu_architecture",
    "gpu_memory",
    "tensorrt_llm_sampler",
    "gather_logits",
    "kv_event_buffer",
)
_TORCH_WEIGHTS: Final = (WeightType.INT8, WeightType.INT4, WeightType.FP8, WeightType.SOURCE)


def check_torch_options(config: BuildConfig) -> None:
    """Refuse what a torch engine does not have.

    Raises:
        ConfigError: such an option was given.
    """
    for field in TENSORRT_LLM_FIELDS:
        value, default = getattr(config, field), BuildConfig.model_fields[field].default
        if value != default:
            raise ConfigError(
                f"{field} is {str(value)!r}, but target is 'torch'; leave it out, or build for tensorrt_llm"
            )
    for field in ("quantization", "draft_quantization"):
        asked: WeightType | None = getattr(config, field)
        if asked is not None and asked not in _TORCH_WEIGHTS:
            known = ", ".join(one.value for one in _TORCH_WEIGHTS)
            raise ConfigError(f"{field} is {asked.value!r}: torch engines take {known}; choose one of them")
