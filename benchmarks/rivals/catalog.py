"""All rivals by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from trierarch.benchmarks.rivals.llamacpp import LLAMACPP, LLAMACPP_NGRAM, LLAMACPP_Q4, LLAMACPP_Q8
from trierarch.benchmarks.rivals.openvino import OPENVINO, OPENVINO_INT4, OPENVINO_INT8, OPENVINO_LOOKUP
from trierarch.benchmarks.rivals.rival import Rival
from trierarch.benchmarks.rivals.transformers import TRANSFORMERS, TRANSFORMERS_LOOKUP, TRANSFORMERS_PEFT
from trierarch.benchmarks.rivals.vllm import VLLM, VLLM_LORA, VLLM_NGRAM
from trierarch.builder.errors import ConfigError

UNQUANTIZED: Final[dict[str, Rival]] = {rival.name: rival for rival in (OPENVINO, LLAMACPP, TRANSFORMERS, VLLM)}
QUANTIZED: Final[dict[str, Rival]] = {
    rival.name: rival for rival in (OPENVINO_INT8, OPENVINO_INT4, LLAMACPP_Q8, LLAMACPP_Q4)
}
SPECULATING: Final[dict[str, Rival]] = {
    rival.name: rival for rival in (OPENVINO_LOOKUP, LLAMACPP_NGRAM, TRANSFORMERS_LOOKUP, VLLM_NGRAM)
}
ADAPTING: Final[dict[str, Rival]] = {rival.name: rival for rival in (TRANSFORMERS_PEFT, VLLM_LORA)}
RIVALS: Final = UNQUANTIZED | QUANTIZED | SPECULATING | ADAPTING


def named(names: Sequence[str], among: Mapping[str, Rival] = RIVALS) -> list[Rival]:
    """Rivals by name.

    Raises:
        ConfigError: there is none of such a name.
    """
    for name in names:
        if name not in among:
            raise ConfigError(f"rival is {name!r}: known are {', '.join(among)}")
    return [among[name] for name in names]


def chosen(names: Sequence[str] | None, among: Mapping[str, Rival] = RIVALS) -> list[Rival]:
    """The rivals to measure: those named, or all of `among` that are installed.

    Raises:
        ConfigError: one of `names` is unknown or not installed.
    """
    if names is None:
        return [rival for rival in among.values() if rival.is_installed]
    rivals = named(names, among)
    missing = [rival.name for rival in rivals if not rival.is_installed]
    if missing:
        raise ConfigError(
            f"not installed: {', '.join(missing)}; install with: python -m trierarch.benchmarks install {' '.join(missing)}"
        )
    return rivals


def left_out(names: Sequence[str] | None, among: Mapping[str, Rival]) -> list[str]:
    """A line for each of `among` that is not measured because it is not installed; none where rivals were named."""
    if names is not None:
        return []
    return [
        f"{rival.name} is not installed and was left out; install it with: python -m trierarch.benchmarks install {rival.name}"
        for rival in among.values()
        if not rival.is_installed
    ]
