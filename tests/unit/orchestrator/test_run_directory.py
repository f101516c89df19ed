from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from trierarch.orchestrator import run_directory
from trierarch.orchestrator.run_directory import RunDirectory
from trierarch.orchestrator.triton_install import TritonInstall


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folder and shared memory of this test alone."""
    for name in ("tmp", "shm"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(run_directory, "SHARED_MEMORY", tmp_path / "shm")


def test_backends_are_the_installed_ones_and_ours(install: TritonInstall) -> None:
    run = RunDirectory(install)

    assert sorted(path.name for path in run.backends.iterdir()) == ["onnx", "python", "trierarch"]
    assert (run.backends / "python" / "stub").read_text() == "this Python's"
    assert not any(path.is_symlink() for path in (run.backends / "python").iterdir()), "Triton refuses links there"
    assert "import TritonPythonModel" in (run.backends / "trierarch" / "model.py").read_text()
    assert (install.backends["trierarch"] / "model.py").read_text() == "installed", "never written through"


def test_the_environment_leads_to_this_python_and_its_library(
    install: TritonInstall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/theirs")
    run = RunDirectory(install)

    environment = run.environment()

    first, *others = environment["LD_LIBRARY_PATH"].split(":")
    assert os.listdir(first) == ["libpython3.so"], "and nothing else of that library's folder"
    assert others == [str(install.libraries[0]), "/theirs"]
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_removing_takes_its_shared_memory_along_and_no_other(install: TritonInstall, tmp_path: Path) -> None:
    run = RunDirectory(install)
    (tmp_path / "shm" / f"{run.shared_memory_prefix}region").touch()
    (tmp_path / "shm" / "somebody else's").touch()

    run.remove()
    run.remove()

    assert not run.path.exists()
    assert os.listdir(tmp_path / "shm") == ["somebody else's"]


def test_what_a_killed_process_left_is_swept_and_what_lives_is_not(install: TritonInstall, tmp_path: Path) -> None:
    living, dead = RunDirectory(install), RunDirectory(install)
    for run in (living, dead):
        (tmp_path / "shm" / f"{run.shared_memory_prefix}region").touch()
    dead.release()  # as the kernel does for a process that is killed

    RunDirectory(install)

    assert living.path.exists()
    assert not dead.path.exists()
    assert os.listdir(tmp_path / "shm") == [f"{living.shared_memory_prefix}region"]
