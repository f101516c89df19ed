"""All rivals by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trierarch.benchmarks.rivals.llamacpp import LLAMACPP
from trierarch.benchmarks.rivals.openvino import OPENVINO
from trierarch.benchmarks.rivals.rival import Rival
from trierarch.benchmarks.rivals.transformers import TRANSFORMERS
from trierarch.benchmarks.rivals.vllm import VLLM
from trierarch.builder.errors import ConfigError

RIVALS: Final[dict[str, Rival]] = {rival.name: rival for rival in (OPENVINO, LLAMACPP, TRANSFORMERS, VLLM)}


def named(names: Sequence[str]) -> list[Rival]:
    """Rivals by name.

    Raises:
        ConfigError: there is none of such a name.
    """
    for name in names:
        if name not in RIVALS:
            raise ConfigError(f"rival is {name!r}: known are {', '.join(RIVALS)}")
    return [RIVALS[name] for name in names]


def chosen(names: Sequence[str] | None) -> list[Rival]:
    """The rivals to measure: those named, or all that are installed.

    Raises:
        ConfigError: one of `names` is unknown or not installed.
    """
    if names is None:
        return [rival for rival in RIVALS.values() if rival.is_installed]
    rivals = named(names)
    missing = [rival.name for rival in rivals if not rival.is_installed]
    if missing:
        raise ConfigError(
            f"not installed: {', '.join(missing)}; install with: python -m trierarch.benchmarks install {' '.join(missing)}"
        )
    return rivals
