"""Releases of TensorRT-LLM: which are known, and how each runs a model.

1.0 to 1.2 compile a TensorRT engine from TensorRT-LLM's own checkpoint, and load Hugging Face checkpoints too; 1.3 has only
the latter (its docs/source/legacy/tensorrt-backend-removal.md). A release is a row; what its arguments are called is in
`arguments.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import Flow

_NUMBER: Final = re.compile(r"([0-9]+)\.([0-9]+)(?:[.a-z+-].*)?")


@dataclass(frozen=True, slots=True)
class Release:
    """One minor release; patches and release candidates of it take the same arguments."""

    name: str
    flows: tuple[Flow, ...]
    """Those it has, the one it is built for first."""

    def flow(self, asked: Flow | None) -> Flow:
        """The flow to build for.

        Raises:
            ConfigError: this release does not have the one that was asked for.
        """
        if asked is None:
            return self.flows[0]
        if asked not in self.flows:
            raise ConfigError(
                f"tensorrt_llm_flow is {asked.value!r}: TensorRT-LLM {self.name} has no TensorRT engines any more; leave it "
                "out, or build for 1.2"
            )
        return asked


_BOTH: Final = (Flow.ENGINE, Flow.PYTORCH)
RELEASES: Final[Mapping[str, Release]] = {
    one.name: one
    for one in (
        Release("1.0", _BOTH),
        Release("1.1", _BOTH),  # not recorded itself: it is given what 1.0 and 1.2 agree on, and `sampler_type`
        Release("1.2", _BOTH),
        Release("1.3", (Flow.PYTORCH,)),
    )
}
NEWEST: Final = "1.3"


def installed_version() -> str | None:
    """Version of the TensorRT-LLM that is installed here; it is not imported."""
    return version_of("tensorrt_llm", "tensorrt-llm")


def version_of(*names: str) -> str | None:
    """Version of the first of several distributions that is installed."""
    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def minor(text: str) -> str:
    """1.2 of 1.2.1 and 1.3 of 1.3.0rc22; what is no version stays as it is."""
    match = _NUMBER.fullmatch(text.strip())
    return text if match is None else f"{int(match[1])}.{int(match[2])}"


def find_release(asked: str | None) -> Release:
    """The release that a version such as 1.2, 1.2.1 or 1.3.0rc22 belongs to; None is the installed one, else the newest.

    Raises:
        ConfigError: it is not known.
    """
    text = asked or installed_version() or NEWEST
    name = minor(text)
    if name not in RELEASES:
        whose = "" if asked is not None else ", the version installed here"
        raise ConfigError(
            f"tensorrt_llm_version is {text!r}{whose}: known are {', '.join(RELEASES)}; name one of them "
            "(--tensorrt-llm-version)"
        )
    return RELEASES[name]
