"""What several engines behind one front may be called."""

from __future__ import annotations

from pathlib import Path

import pytest

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.sleep.rest import Rest
from trierarch.orchestrator.sleep.service import SleepConfig


def config(*paths: str) -> SleepConfig:
    return SleepConfig(tuple(map(Path, paths)), ServerConfig(), Rest(idle_timeout=1.0))


def test_engines_are_called_as_their_directories() -> None:
    assert config("engines/a", "engines/b/").names == ("a", "b")
    assert config("engines/größe").names == ("größe",)


@pytest.mark.parametrize("paths", [("here/a", "there/a"), ("a", "größe"), ("a", "b\n")])
def test_names_that_no_header_tells_apart_are_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="PATHs are named"):
        config(*paths)
