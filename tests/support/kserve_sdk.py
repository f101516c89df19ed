"""KServe's SDK, in an environment of its own: it cannot live in one process with tritonclient.grpc, nor beside our psutil."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

VERSION = "0.21.0"
INSTALL_SECONDS = 600


def sdk_python() -> Path:
    """A Python that has it, made once for this environment; skips where it cannot be installed."""
    home = Path(sys.prefix) / f"kserve-sdk-{VERSION}"
    python = home / "bin/python"
    if not (home / "installed").exists():
        _install(home, python)
    return python


def _install(home: Path, python: Path) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"kserve=={VERSION}"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(home)], pip):
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.skip(f"the KServe SDK was not installed within {INSTALL_SECONDS} s")
        if done.returncode:
            pytest.skip(f"the KServe SDK cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    (home / "installed").touch()
