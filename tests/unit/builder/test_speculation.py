"""Who guesses and how far: what follows from the options, and which of them contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.builder.build import build
from trierarch.builder.config import DEFAULT_DRAFTERS, BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import DrafterKind, Limits, Speculation
from trierarch.builder.speculation import choose_drafters, plan_speculation


def config_of(**options: Any) -> BuildConfig:
    return BuildConfig.model_validate({"model": "nowhere", "output": Path("engine"), **options})


def plan(limits: Limits, **options: Any) -> Speculation | None:
    config = config_of(**options)
    return plan_speculation(config, choose_drafters(config), limits)


LIMITS = Limits(max_seq_len=100, max_num_tokens=50)


def test_what_guesses_from_text_alone_is_the_default() -> None:
    assert plan(LIMITS) == Speculation(drafters=DEFAULT_DRAFTERS)


def test_a_draft_joins_the_default() -> None:
    speculation = plan(LIMITS, draft="int4")
    assert speculation == Speculation(drafters=(*DEFAULT_DRAFTERS, DrafterKind.DRAFT_MODEL), draft_engine="draft")


def test_what_was_asked_is_what_the_manifest_says() -> None:
    asked = {"max_draft_tokens": 3, "speculation_history_bytes": 0, "draft": "int8"}
    assert plan(LIMITS, speculation=("draft_model", "suffix", "suffix"), **asked) == Speculation(
        drafters=(DrafterKind.SUFFIX, DrafterKind.DRAFT_MODEL),
        max_draft_tokens=3,
        history_bytes=0,
        draft_engine="draft",
    )
    assert plan(LIMITS, speculation=()) is None
    for kind, draft in (("eagle3", {"draft": "head"}), ("mtp", {})):
        speculation = plan(LIMITS, speculation=(kind,), **draft)
        assert speculation == Speculation(drafters=(DrafterKind(kind),), draft_engine="draft")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"speculation": ["eagle3"]},
            r"speculation names eagle3, and there is no head; give one with --draft, or leave",
        ),
        ({"speculation": ["eagle3"], "draft": "int4"}, r"draft is 'int4', which is the model itself, but .* eagle3"),
        ({"speculation": ["mtp"], "draft": "demo"}, r"draft is 'demo', but speculation is mtp; add draft_model to it"),
        (
            {"speculation": ["mtp", "eagle3", "suffix"], "draft": "demo"},
            r"names eagle3 and mtp: an engine holds one of these; leave the others out",
        ),
        ({"speculation": ["draft_model", "mtp"], "draft": "int4"}, r"names draft_model and mtp: an engine holds one"),
        (
            {"speculation": ["eagle3"], "draft": "demo", "draft_quantization": "int4"},
            r"draft_quantization is 'int4', but speculation names eagle3, and heads are not quantised; leave it out",
        ),
        (
            {"speculation": ["mtp"], "draft_quantization": "int8"},
            r"draft_quantization is 'int8', but speculation names mtp, and heads are not quantised; leave it out",
        ),
        (
            {"speculation": ["draft_model"]},
            r"names draft_model, and there is no draft; give one with --draft, or leave",
        ),
        ({"speculation": ["suffix"], "draft": "int4"}, r"draft is 'int4', but speculation is suffix; add draft_model"),
        ({"speculation": [], "draft": "demo"}, r"draft is 'demo', but speculation is none; add draft_model"),
        ({"draft_quantization": "int4"}, r"draft_quantization is 'int4', and there is no draft; give one with --draft"),
        ({"draft_quantization": "int4", "draft": "int8"}, r"but draft is 'int8', which says it already; leave it out"),
        ({"speculation": [], "max_draft_tokens": 4}, r"max_draft_tokens is 4, but speculation is none; leave it out"),
        (
            {"speculation": ["prompt_lookup"], "speculation_history_bytes": 9},
            r"speculation_history_bytes is 9, but only suffix reads earlier answers; add suffix",
        ),
    ],
)
def test_options_that_contradict_are_named_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config_of(**options))


@pytest.mark.parametrize(
    ("limits", "options", "message"),
    [
        (LIMITS, {"max_draft_tokens": 100}, r"max_draft_tokens is 100: a sequence has max_seq_len 100 tokens"),
        (LIMITS, {"max_draft_tokens": 51}, r"max_draft_tokens is 51: a step computes max_num_tokens 50; ask for fewer"),
        (Limits(max_seq_len=1), {"draft": "int4"}, r"max_draft_tokens is 1: a sequence has max_seq_len 1 tokens"),
    ],
)
def test_more_guesses_than_there_is_room_for_are_refused(limits: Limits, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(limits, **options)
    assert plan(LIMITS, max_draft_tokens=50) is not None


@given(max_seq_len=st.integers(1, 40), max_num_tokens=st.integers(1, 40))
def test_the_default_fits_any_limits(max_seq_len: int, max_num_tokens: int) -> None:
    speculation = plan(Limits(max_seq_len=max_seq_len, max_num_tokens=max_num_tokens))
    if max_seq_len == 1:
        assert speculation is None
    else:
        assert speculation is not None
        assert speculation.max_draft_tokens == min(16, max_seq_len - 1, max_num_tokens)
