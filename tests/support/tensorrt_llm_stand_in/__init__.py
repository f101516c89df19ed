"""A stand-in for TensorRT-LLM, which needs a GPU: its names as recorded, by release, over a model worked out by hand.

`tensorrt_llm/` is the package. It is the release of the metadata that `install` writes beside it, as pip would.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

VERSIONS = {"1.0": "1.0.0", "1.2": "1.2.1", "1.3": "1.3.0rc26"}
TENSORRT = "10.14.1.48"


def install(folder: Path, release: str) -> Path:
    """Lay the package and its metadata out in `folder`, to be put on the module path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensorrt_llm").symlink_to(Path(__file__).parent / "tensorrt_llm")
    for name, version in (("tensorrt_llm", VERSIONS[release]), ("tensorrt", TENSORRT)):
        metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    return folder


def environment(folder: Path, release: str) -> Path:
    """A Python of its own that has all that this one has, and the stand-in: the path of its `python3`.

    Triton's stub takes the first `python3` on PATH, with that one's packages, and ignores PYTHONPATH.
    """
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    places = [*(place for place in sys.path if place and Path(place).is_dir()), str(install(folder / "site", release))]
    lines = [f"import site; site.addsitedir({place!r})" for place in places if not place.startswith(sys.base_prefix)]
    (packages / "stand_in.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    home = Path(sys.base_prefix) / "bin"
    (folder / "pyvenv.cfg").write_text(f"home = {home}\n", encoding="utf-8")
    python = folder / "bin" / "python3"
    python.parent.mkdir()
    python.symlink_to(home / f"python{sys.version_info.major}.{sys.version_info.minor}")
    return python


@contextmanager
def importable(folder: Path) -> Iterator[ModuleType]:
    """Put an installed stand-in on the module path; its controls. Afterwards nothing of it is left."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module("tensorrt_llm.controls")
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]:
            del sys.modules[name]
