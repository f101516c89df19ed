from __future__ import annotations

import pytest

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60", 60), ("60s", 60), ("5m", 300), ("1h", 3600), ("250ms", 0.25), (" 1.5 M ", 90), ("0", 0)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "-1", "1m30s", "s"])
def test_what_is_none_is_told_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="5m"):
        parse_duration(text)
