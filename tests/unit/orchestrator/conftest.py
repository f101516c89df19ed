from __future__ import annotations

from pathlib import Path

import pytest

from trierarch.orchestrator.triton_install import TritonInstall


@pytest.fixture
def install(tmp_path: Path) -> TritonInstall:
    """A Triton of empty files: enough for what is prepared before one starts."""
    for name, file in (("python", "libtriton_python.so"), ("onnx", "libtriton_onnx.so"), ("trierarch", "model.py")):
        (tmp_path / "opt" / name).mkdir(parents=True)
        (tmp_path / "opt" / name / file).write_text("installed")
    (tmp_path / "stub").write_text("this Python's")
    (tmp_path / "libpython3.so").write_text("library")
    return TritonInstall(
        binary=tmp_path / "tritonserver",
        origin="test",
        backends={path.name: path for path in (tmp_path / "opt").iterdir()},
        stub=tmp_path / "stub",
        libraries=(tmp_path / "libs",),
        libpython=tmp_path / "libpython3.so",
    )
