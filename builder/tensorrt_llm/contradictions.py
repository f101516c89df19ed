"""Options for TensorRT-LLM that contradict each other: refused before any work is done."""

from __future__ import annotations

from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import DrafterKind


def check_together(config: BuildConfig, drafter: DrafterKind | None) -> None:
    """Whether what was asked for can be had in one engine; `config` has the target's own defaults.

    `trtllm-build` refuses to gather logits of prompts where tokens are guessed, and the PyTorch flow leaves them out.

    Raises:
        ConfigError: it cannot.
    """
    if config.gather_logits and drafter is not None:
        raise ConfigError(
            f"gather_logits is True, and speculation is {drafter.value}: TensorRT-LLM tells no logits where tokens are "
            "guessed; leave one of them out"
        )
    if config.kv_event_buffer and not config.enable_prefix_caching:
        raise ConfigError(
            f"kv_event_buffer is {config.kv_event_buffer}, and enable_prefix_caching is off: events tell of cached prefixes "
            "alone; leave one of them out"
        )
    if config.adapters and config.lora is None:
        raise ConfigError(
            f"there are {len(config.adapters)} adapters for the engine, and max_adapters is 0; say how many run at once with "
            "--max-adapters, or leave them out"
        )
