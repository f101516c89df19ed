"""What the system's package manager must bring before `make` can install: run as `python -m`, standard library only.

On Debian and Ubuntu, Python's venv module and its shared library (which Triton's Python backend is linked to) are
packages of their own. Root gets them installed; anyone else is told the line to type.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.libpython import find_libpython

OLDEST, NEWEST = (3, 11), (3, 13)


def missing_packages() -> list[str]:
    """Debian's names of the packages that this interpreter lacks."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = []
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        packages.append(f"python{version}-venv")
    try:
        find_libpython()
    except ResourceError:
        if shutil.which("tritonserver") is None:  # an installed server brings what its backend needs
            packages.append(f"libpython{version}")
    return packages


def main() -> None:
    """Exit with a line that says what to do, unless all is here."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(f"==> Python 3.11 to 3.13 is needed, and this is {here}: name one with: make PYTHON=python3.12 ...")
    packages = missing_packages()
    if not packages:
        return
    is_debians_python = Path(sys.base_prefix) == Path("/usr") and shutil.which("apt-get") is not None
    if not is_debians_python:
        sys.exit(
            f"==> this Python lacks {' and '.join(packages)}: install them, use the system's Python "
            "(make PYTHON=/usr/bin/python3 ...), or rebuild it with --enable-shared"
        )
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if os.geteuid() != 0:
        sys.exit(f"==> first install what Python lacks: sudo {' '.join(install)}")
    sys.stderr.write(f"==> installing what Python lacks: {' '.join(install)}\n")
    subprocess.run(["apt-get", "update", "--quiet=2"], check=False)
    if subprocess.run([*install, "--quiet=2"], check=False).returncode:
        sys.exit(f"==> that failed; try: {' '.join(install)}")


if __name__ == "__main__":
    main()
