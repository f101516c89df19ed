"""What a build for TensorRT-LLM takes where nobody chose: a GPU's sizes, and nothing that costs every request something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError

DEFAULTS: Final[Mapping[str, Any]] = {
    "max_num_tokens": 8192,  # TensorRT-LLM's own, as the next two
    "block_size": 32,
    "kv_cache_memory_fraction": 0.9,
    # TensorRT-LLM guesses for every request or for none, and keeps room for adapters from the start.
    "speculation": (),
    "max_adapters": 0,
}
MAX_DRAFT_TOKENS: Final = 4
"""Where somebody speculates: all guesses are verified, however unlikely they are."""

_OF_ADAPTERS: Final = ("max_lora_rank", "adapter_host_bytes")


def with_defaults(config: BuildConfig) -> BuildConfig:
    """`config` with the target's own defaults.

    Raises:
        ConfigError: something is said of adapters, and not how many there may be.
    """
    asked = config.model_fields_set
    for field in _OF_ADAPTERS:
        if field in asked and not config.max_adapters * ("max_adapters" in asked):
            raise ConfigError(
                f"{field} is {getattr(config, field)}, but the engine takes no adapters; say how many at once with "
                "--max-adapters, or leave it out"
            )
    chosen = {field: value for field, value in DEFAULTS.items() if field not in asked}
    if config.draft is not None:
        chosen.pop("speculation", None)
        if config.speculation is None:
            chosen["speculation"] = ("draft_model",)
    is_speculating = bool(chosen.get("speculation", config.speculation))
    if is_speculating and config.max_draft_tokens is None:
        chosen["max_draft_tokens"] = MAX_DRAFT_TOKENS
    return BuildConfig.model_validate({**{name: getattr(config, name) for name in asked}, **chosen})
