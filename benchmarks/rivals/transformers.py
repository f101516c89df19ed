"""Hugging Face transformers, in our own environment: the golden tests need the same release."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from trierarch.benchmarks.rivals.checkpoint import DIRECTORY, demo_directory
from trierarch.benchmarks.rivals.rival import Rival, Say, with_options
from trierarch.benchmarks.subjects.worker import Launch
from trierarch.builder.errors import ResourceError

NAME: Final = "transformers"
WORKER: Final = "trierarch.benchmarks.workers.transformers"


def _install(say: Say) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ResourceError("transformers is not in this environment; install it with: pip install --group reference")
    demo_directory(say)


TRANSFORMERS: Final = Rival(
    name=NAME,
    summary="Hugging Face transformers, eager generate",
    install=_install,
    launch=lambda: Launch(name=NAME, python=Path(sys.executable), module=WORKER, model=DIRECTORY),
)

TRANSFORMERS_LOOKUP: Final = with_options(
    TRANSFORMERS, "lookup", "Hugging Face transformers, eager generate, speculating by prompt look-up"
)


def _need_peft(say: Say) -> None:
    if importlib.util.find_spec("peft") is None:
        raise ResourceError("peft is not in this environment; install it with: pip install --group reference")


TRANSFORMERS_PEFT: Final = replace(
    with_options(
        TRANSFORMERS, "peft", "PEFT on Hugging Face transformers, eager generate, rows mixed by adapter_names"
    ),
    install=_need_peft,
)
