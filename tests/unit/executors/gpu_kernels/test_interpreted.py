"""The kernels under the interpreter of Triton's language, on a CPU, against their references.

The interpreter is switched on before that package is imported and stays on, so these tests have a process of their own:
`interpreted/` is not collected without it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton's language is not installed")
def test_kernels_equal_their_references() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(Path(__file__).parent / "interpreted"), "-q", "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
