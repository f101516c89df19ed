"""Who guesses tokens ahead and how far: what was asked, checked for contradictions and against the engine's limits."""

from __future__ import annotations

from typing import Final

from trierarch.builder.blueprint import DRAFT_FOLDER
from trierarch.builder.config import DEFAULT_DRAFTERS, BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import DrafterKind, Limits, Speculation, WeightType

SELF_DRAFTS: Final = {one.value: one for one in (WeightType.INT8, WeightType.INT4)}
"""A `draft` that is the model itself, so quantised."""
_OF_A_DRAFT: Final = (DrafterKind.DRAFT_MODEL, DrafterKind.EAGLE3)
"""Those that a `draft` is for."""
_DEFAULT_MAX_DRAFT_TOKENS: Final[int] = Speculation.model_fields["max_draft_tokens"].default


def choose_drafters(config: BuildConfig) -> tuple[DrafterKind, ...]:
    """Those that `config` asks for, each once and in the order of DrafterKind; decided before any work is done.

    Raises:
        ConfigError: options contradict each other.
    """
    asked = set(DEFAULT_DRAFTERS if config.speculation is None else config.speculation)
    if config.speculation is None and config.draft is not None:
        asked.add(DrafterKind.DRAFT_MODEL)
    drafters = tuple(kind for kind in DrafterKind if kind in asked)
    _check_nested(drafters)
    _check_draft(config, drafters)
    _check_draft_quantization(config, drafters)
    _check_idle_options(config, drafters)
    return drafters


def plan_speculation(config: BuildConfig, drafters: tuple[DrafterKind, ...], limits: Limits) -> Speculation | None:
    """How an engine of `limits` speculates; None where nobody guesses, or where nobody asked and nothing can be guessed.

    Raises:
        ConfigError: more draft tokens are asked for than a sequence or a step has room for.
    """
    room = min(limits.max_seq_len - 1, limits.max_num_tokens)  # a guess follows at least one token
    is_asked = config.speculation is not None or config.draft is not None or config.max_draft_tokens is not None
    if not drafters or (room == 0 and not is_asked):
        return None
    max_draft_tokens = config.max_draft_tokens or min(_DEFAULT_MAX_DRAFT_TOKENS, max(1, room))
    if max_draft_tokens >= limits.max_seq_len:
        raise ConfigError(
            f"max_draft_tokens is {max_draft_tokens}: a sequence has max_seq_len {limits.max_seq_len} tokens, the guessed "
            "ones included; ask for fewer, or build with --speculation none"
        )
    if max_draft_tokens > limits.max_num_tokens:
        raise ConfigError(
            f"max_draft_tokens is {max_draft_tokens}: a step computes max_num_tokens {limits.max_num_tokens}; "
            "ask for fewer draft tokens, or for more tokens a step"
        )
    history = {} if config.speculation_history_bytes is None else {"history_bytes": config.speculation_history_bytes}
    return Speculation(
        drafters=drafters,
        max_draft_tokens=max_draft_tokens,
        draft_engine=DRAFT_FOLDER if any(kind.has_engine for kind in drafters) else None,
        **history,
    )


def _check_nested(drafters: tuple[DrafterKind, ...]) -> None:
    nested = [kind.value for kind in drafters if kind.has_engine]
    if len(nested) > 1:
        raise ConfigError(
            f"speculation names {' and '.join(nested)}: an engine holds one of these; leave the others out"
        )


def _check_draft(config: BuildConfig, drafters: tuple[DrafterKind, ...]) -> None:
    names = ", ".join(kind.value for kind in drafters) or "none"
    if DrafterKind.DRAFT_MODEL in drafters and config.draft is None:
        raise ConfigError(
            "speculation names draft_model, and there is no draft; give one with --draft, or leave it out"
        )
    if DrafterKind.EAGLE3 in drafters and config.draft is None:
        raise ConfigError("speculation names eagle3, and there is no head; give one with --draft, or leave it out")
    if DrafterKind.EAGLE3 in drafters and config.draft in SELF_DRAFTS:
        raise ConfigError(
            f"draft is {config.draft!r}, which is the model itself, but speculation names eagle3; give the checkpoint of "
            "a head, or name draft_model"
        )
    if config.draft is not None and not any(kind in drafters for kind in _OF_A_DRAFT):
        raise ConfigError(
            f"draft is {config.draft!r}, but speculation is {names}; add draft_model to it (eagle3 where the draft is "
            "such a head), or leave the draft out"
        )


def _check_draft_quantization(config: BuildConfig, drafters: tuple[DrafterKind, ...]) -> None:
    if config.draft_quantization is None:
        return
    asked = f"draft_quantization is {config.draft_quantization.value!r}"
    heads = [kind.value for kind in drafters if kind.is_head]
    if heads:
        raise ConfigError(f"{asked}, but speculation names {heads[0]}, and heads are not quantised; leave it out")
    if config.draft is None:
        raise ConfigError(f"{asked}, and there is no draft; give one with --draft, or leave it out")
    if config.draft in SELF_DRAFTS:
        raise ConfigError(f"{asked}, but draft is {config.draft!r}, which says it already; leave it out")


def _check_idle_options(config: BuildConfig, drafters: tuple[DrafterKind, ...]) -> None:
    if not drafters and config.max_draft_tokens is not None:
        raise ConfigError(f"max_draft_tokens is {config.max_draft_tokens}, but speculation is none; leave it out")
    if config.speculation_history_bytes is not None and DrafterKind.SUFFIX not in drafters:
        raise ConfigError(
            f"speculation_history_bytes is {config.speculation_history_bytes}, but only suffix reads earlier answers; "
            "add suffix to the speculation, or leave it out"
        )
