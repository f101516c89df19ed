"""Our drafters in TensorRT-LLM's words.

One drafter at a time: `LLM` takes one `speculative_config`. Its classes are selected by `decoding_type`, whose spelling differs
between releases (DecodingBaseConfig.from_dict up to 1.2, a discriminator since). Which backend runs which is recorded with
them: TensorRT engines know only draft tokens that somebody else brings (`draft_tokens_external`), and heads of kinds that
Trierarch does not build.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trierarch.builder.blueprint import DRAFT_FOLDER
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import DrafterKind, Flow
from trierarch.builder.tensorrt_llm.releases import Release

MODEL_FOLDER: Final = "model"
"""Of a Hugging Face checkpoint within an engine, and within its draft."""
MAX_MATCHING_NGRAM: Final = 3
"""Tokens that NGram compares at most; up to 1.2 it must be said."""

_BEFORE: Final = ("1.0", "1.1", "1.2")
_DECODING_TYPES: Final[Mapping[DrafterKind, Mapping[str, str]]] = {
    DrafterKind.PROMPT_LOOKUP: {**dict.fromkeys(_BEFORE, "NGram"), "1.3": "NGram"},
    DrafterKind.SUFFIX: {"1.3": "SA"},
    DrafterKind.DRAFT_MODEL: {**dict.fromkeys(_BEFORE, "DraftTarget"), "1.3": "Draft_Target"},
    # Up to 1.2 the class of Eagle runs EAGLE-3 heads.
    DrafterKind.EAGLE3: {**dict.fromkeys(_BEFORE, "Eagle"), "1.3": "Eagle3"},
    DrafterKind.MTP: {**dict.fromkeys(_BEFORE, "MTP"), "1.3": "MTP"},
}
DRAFTS_EXTERNALLY: Final = "DRAFT_TOKENS_EXTERNAL"


def the_drafter(drafters: tuple[DrafterKind, ...], release: Release, flow: Flow) -> DrafterKind | None:
    """The one of `drafters` that TensorRT-LLM is to run.

    Raises:
        ConfigError: there are several, or it is none of this release and flow.
    """
    if not drafters:
        return None
    names = ", ".join(kind.value for kind in drafters)
    if len(drafters) > 1:
        raise ConfigError(f"speculation is {names}: TensorRT-LLM runs one drafter; name one of them")
    (kind,) = drafters
    if flow is Flow.ENGINE and kind is not DrafterKind.DRAFT_MODEL:
        raise ConfigError(
            f"speculation is {names}: TensorRT engines take the guesses of a draft model alone; name draft_model, or build "
            "with --tensorrt-llm-flow pytorch"
        )
    if release.name not in _DECODING_TYPES[kind]:
        known = ", ".join(one.value for one, types in _DECODING_TYPES.items() if release.name in types)
        raise ConfigError(f"speculation is {names}: TensorRT-LLM {release.name} has {known}; name one of them")
    return kind


def speculative_config(kind: DrafterKind, max_draft_len: int, release: Release) -> dict[str, Any]:
    """The `speculative_config` of the PyTorch flow."""
    config: dict[str, Any] = {"decoding_type": _DECODING_TYPES[kind][release.name]}
    if kind is DrafterKind.MTP and release.name in _BEFORE:
        return {**config, "num_nextn_predict_layers": max_draft_len}
    config["max_draft_len"] = max_draft_len
    if kind is DrafterKind.PROMPT_LOOKUP:
        # A pool that all requests share would tell one tenant what another was answered.
        config |= {"max_matching_ngram_size": MAX_MATCHING_NGRAM, "is_public_pool": False}
    if kind is DrafterKind.SUFFIX:
        config["enable_global_pool"] = False  # likewise
    if release.name not in _BEFORE and kind is not DrafterKind.PROMPT_LOOKUP:
        # Model and drafter are one here, which would draw the likeliest tokens whatever was asked for.
        config["allow_advanced_sampling"] = True
    if kind in (DrafterKind.DRAFT_MODEL, DrafterKind.EAGLE3):
        config["speculative_model_dir"] = f"{DRAFT_FOLDER}/{MODEL_FOLDER}"
    return config


def runs_on_host(kind: DrafterKind | None) -> bool:
    """Whether guesses are made between steps, which the overlap of steps would leave no time for."""
    return kind in (DrafterKind.PROMPT_LOOKUP, DrafterKind.DRAFT_MODEL)
