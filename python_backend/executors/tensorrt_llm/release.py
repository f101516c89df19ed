"""Release: what of the LLM API differs from one release of TensorRT-LLM to the next, as far as it is used here.

The names are recorded in `tests/data/tensorrt_llm_signatures.json`, and what is built is checked against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trierarch.builder.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release; the engine's record names it."""

    name: str
    lora_config_modules: tuple[str, ...]
    """Where LoraConfig is; the first that has it."""
    takes_cache_salt: bool
    takes_priority: bool
    """Whether `generate_async` does."""


_MANAGER, _HELPER = "tensorrt_llm.lora_manager", "tensorrt_llm.lora_helper"

RELEASES: Final = {
    release.name: release
    for release in (
        Release(name="1.0", lora_config_modules=(_MANAGER,), takes_cache_salt=False, takes_priority=False),
        # Not recorded itself: its calls get only what those of 1.0 and 1.2 agree on.
        Release(name="1.1", lora_config_modules=(_HELPER, _MANAGER), takes_cache_salt=False, takes_priority=False),
        Release(name="1.2", lora_config_modules=(_HELPER,), takes_cache_salt=True, takes_priority=False),
        Release(name="1.3", lora_config_modules=(_HELPER,), takes_cache_salt=True, takes_priority=True),
    )
}


def release_of(name: str) -> Release:
    """The release of a name such as 1.2.

    Raises:
        EngineError: its names are not known here.
    """
    if name not in RELEASES:
        raise EngineError(
            f"tensorrt_llm.version is {name!r}: the names of {', '.join(RELEASES)} are known here; rebuild the engine for "
            "one of these with: trierarch build --target tensorrt_llm"
        )
    return RELEASES[name]
