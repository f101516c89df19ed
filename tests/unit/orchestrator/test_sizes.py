from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1", 1),
        ("4096B", 4096),
        ("512MiB", 512 * 2**20),
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("64kb", 64_000),
        ("64KIB", 65_536),
        ("1TiB", 2**40),
    ],
)
def test_sizes_mean_what_they_say(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "1e9", "512M", "12 parsecs", "0", "0.4B"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="512MiB"):
        parse_size(text)


def test_nothing_may_be_enough() -> None:
    assert parse_size("0", least=0) == 0


@given(st.integers(1, 2**50))
def test_a_formatted_size_parses_back_within_its_digits(num_bytes: int) -> None:
    assert parse_size(format_size(num_bytes)) == pytest.approx(num_bytes, rel=0.006)
