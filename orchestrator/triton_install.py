"""TritonInstall: the tritonserver that this machine has, and the parts of it that running our backend needs."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.libpython import find_libpython


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonInstall:
    """Where one tritonserver lies."""

    binary: Path
    origin: str
    """For people: the installed server, or the nvidia-pytriton wheel."""
    backends: dict[str, Path]
    """Backend name -> its folder."""
    stub: Path | None
    """Stub of this Python version, where it lies outside the `python` backend; None: the backend has its own."""
    libraries: tuple[Path, ...]
    """Folders the server and its stub load libraries from, beyond the system's."""
    libpython: Path | None
    """What the stub is linked to, where it does not bring its own."""


def find_triton() -> TritonInstall:
    """A `tritonserver` on PATH wins; else the one inside the nvidia-pytriton wheel.

    Raises:
        ResourceError: there is neither, it has no Python backend for this Python, or libpython is missing.
    """
    on_path = shutil.which("tritonserver")
    return _installed(Path(on_path).resolve()) if on_path else _from_wheel()


def _installed(binary: Path) -> TritonInstall:
    root = binary.parent.parent
    folder = root / "backends"
    backends = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}
    if "python" not in backends:
        raise ResourceError(
            f"{binary} has no Python backend at {folder / 'python'}: use a Triton image that has one "
            "(the -py3 ones do), or take this tritonserver off PATH to use the nvidia-pytriton wheel"
        )
    return TritonInstall(
        binary=binary, origin="installed", backends=backends, stub=None, libraries=(root / "lib",), libpython=None
    )


def _from_wheel() -> TritonInstall:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ResourceError(
            "no tritonserver on PATH and no nvidia-pytriton here: pip install 'trierarch[server]', "
            "or run inside a Triton image"
        )
    package = Path(spec.origin).parent
    root, libraries = package / "tritonserver", package.parent / "nvidia_pytriton.libs"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ResourceError(f"nvidia-pytriton has no Python backend for Python {version}: use Python 3.11 to 3.13")
    brings_its_own = any(libraries.glob(f"libpython3*.{sys.version_info.minor}.so*"))
    return TritonInstall(
        binary=root / "bin" / "tritonserver",
        origin="nvidia-pytriton",
        backends={"python": root / "backends" / "python"},
        stub=stub,
        libraries=(libraries,),
        libpython=None if brings_its_own else find_libpython(),
    )
