"""The real demo checkpoint, for tests that need real weights or the real tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from trierarch.builder.demo import find_demo
from trierarch.builder.errors import ResourceError
from trierarch.builder.progress import NoProgress


@cache
def demo_checkpoint() -> Path:
    """Path of the demo GGUF; the test is skipped where it is neither here nor to be downloaded."""
    try:
        return find_demo(NoProgress())
    except ResourceError as error:
        pytest.skip(str(error))
