from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator import libpython, triton_install
from trierarch.orchestrator.triton_install import find_triton


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server in the layout of Triton's images, first on PATH."""
    binary = tmp_path / "tritonserver" / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary.parent))
    return tmp_path / "tritonserver"


def test_a_server_on_path_wins_with_all_its_backends(installed: Path) -> None:
    for name in ("python", "tensorrtllm"):
        (installed / "backends" / name).mkdir(parents=True)

    found = find_triton()

    assert found.binary == installed / "bin" / "tritonserver"
    assert set(found.backends) == {"python", "tensorrtllm"}
    assert found.stub is None


def test_a_server_without_the_python_backend_is_no_use(installed: Path) -> None:
    with pytest.raises(ResourceError, match="no Python backend"):
        find_triton()


def test_neither_server_nor_wheel_names_the_way_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(triton_install.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ResourceError, match=r"trierarch\[server\]"):
        find_triton()


def test_a_python_without_its_library_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libpython, "_folders", list)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"

    with pytest.raises(ResourceError, match=f"apt-get install libpython{version}"):
        libpython.find_libpython()
