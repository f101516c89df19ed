"""Finds the shared library of this interpreter, which Triton's Python stub is linked to."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from trierarch.builder.errors import ResourceError


def libpython_name() -> str:
    """File name the stub asks the linker for, such as libpython3.12.so.1.0."""
    return f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def find_libpython() -> Path:
    """The library of the interpreter that runs this (in a virtual environment: of its base).

    Raises:
        ResourceError: there is none, as with Debian's python3 before libpython3.X is installed.
    """
    name = libpython_name()
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    raise ResourceError(
        f"{name} is not here, and Triton's Python backend needs it: "
        f"apt-get install libpython{sys.version_info.major}.{sys.version_info.minor} "
        "(with pyenv: reinstall this Python with PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def _folders() -> list[Path]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    library = sysconfig.get_config_var("LIBDIR") or ""
    listed = [
        *(folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder),
        f"{sys.base_prefix}/lib",
        library,
        f"{library}/{multiarch}",
        f"/usr/lib/{multiarch}",
        "/usr/local/lib",
    ]
    return [Path(folder) for folder in dict.fromkeys(listed) if folder]
