"""Engines that may not run here are told so before any weight is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import random_checkpoint
from trierarch.builder import machine
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import EngineManifest
from trierarch.builder.verify import digest_file, verify


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    build(BuildConfig(model=str(random_checkpoint("qwen3", tmp_path / "hf")), output=tmp_path / "engine"))
    return tmp_path / "engine"


def change_manifest(engine: Path, **values: Any) -> None:
    path = engine / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_sound_engine_is_its_manifest(engine: Path) -> None:
    assert verify(engine) == verify(engine, digests=True) == EngineManifest.load(engine)


def test_a_missing_file_is_named(engine: Path) -> None:
    (engine / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"tokenizer.json is missing; rebuild the engine"):
        verify(engine)


def test_a_truncated_file_is_named(engine: Path) -> None:
    path = engine / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"weights.safetensors has \d+ bytes, its manifest says \d+; rebuild"):
        verify(engine)


def test_an_altered_byte_is_found_by_its_digest(engine: Path) -> None:
    path = engine / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    verify(engine)
    with pytest.raises(EngineError, match=r"weights.safetensors was altered"):
        verify(engine, digests=True)


def test_a_foreign_cpu_is_refused(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_manifest(engine, requires={"cpu_flags": ["avx2", "amx_tile"], "device": "any"})
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(EngineError, match=r"needs a CPU with amx_tile; rebuild the engine .* on this machine"):
        verify(engine)


@pytest.mark.parametrize(("here", "text"), [((), "no CUDA device"), (("sm_80",), "sm_80")])
def test_a_foreign_device_is_refused(
    here: tuple[str, ...], text: str, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_manifest(engine, requires={"cpu_flags": [], "device": "sm_90"})
    monkeypatch.setattr(machine, "cuda_architectures", lambda: here)
    with pytest.raises(EngineError, match=rf"was built for sm_90, and here is {text}"):
        verify(engine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2, this Trierarch reads 1"),
        ({"target": "abacus"}, "target: Input should be 'torch'"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"files": {"../hf/config.json": {"num_bytes": 1, "sha256": "0" * 64}}}, "lies outside the engine"),
        ({"files": {"/etc/passwd": {"num_bytes": 1, "sha256": "0" * 64}}}, "lies outside the engine"),
    ],
)
def test_a_foreign_manifest_is_refused(change: dict[str, Any], message: str, engine: Path) -> None:
    change_manifest(engine, **change)
    with pytest.raises(EngineError, match=message):
        verify(engine)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with a draft; never changed."""
    directory = tmp_path_factory.mktemp("pair")
    model = str(random_checkpoint("llama", directory / "hf"))
    build(BuildConfig(model=model, output=directory / "engine", draft="int8", compile=False))
    return directory / "engine"


@pytest.fixture
def with_draft(pair: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pair, tmp_path / "engine")


def test_a_draft_is_checked_with_its_engine(with_draft: Path) -> None:
    manifest = verify(with_draft, digests=True)
    assert manifest.load_draft(with_draft) == verify(with_draft / "draft", digests=True)
    path = with_draft / "draft" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    verify(with_draft)
    with pytest.raises(EngineError, match=r"draft/weights.safetensors was altered"):
        verify(with_draft, digests=True)
    path.unlink()
    with pytest.raises(EngineError, match=r"draft/weights.safetensors is missing; rebuild the engine with: trier"):
        verify(with_draft)


def change_draft(engine: Path, **values: Any) -> None:
    """Change the draft's manifest and let the engine's own know it so."""
    change_manifest(engine / "draft", **values)
    files = EngineManifest.load(engine).model_dump(mode="json")["files"]
    change_manifest(engine, files=files | {"draft/engine.json": digest_file(engine / "draft/engine.json").model_dump()})


def test_a_draft_for_another_cpu_is_refused(with_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_draft(with_draft, requires={"cpu_flags": ["avx2", "amx_tile"], "device": "any"})
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(
        EngineError, match=r"engine 'hf-int8' needs a CPU with amx_tile; rebuild the engine with: trierarch build on"
    ):
        verify(with_draft)


def test_a_draft_that_is_not_the_engines_own_is_refused(with_draft: Path) -> None:
    weights = EngineManifest.load(with_draft / "draft").files["weights.safetensors"]
    change_draft(with_draft, files={"weights.safetensors": weights.model_dump() | {"sha256": "0" * 64}})
    with pytest.raises(EngineError, match=r"draft/weights.safetensors is not the file its draft was built with; rebu"):
        verify(with_draft)


@pytest.mark.parametrize(
    ("speculation", "message"),
    [
        ({"drafters": ["suffix"], "draft_engine": "draft"}, "drafters and draft_engine of its speculation contradict"),
        ({"drafters": ["draft_model"]}, "drafters and draft_engine of its speculation contradict"),
        ({"drafters": ["draft_model"], "draft_engine": ".."}, "files has no ../engine.json, the manifest of its draft"),
    ],
)
def test_speculation_names_a_draft_that_is_there(speculation: dict[str, Any], message: str, with_draft: Path) -> None:
    change_manifest(with_draft, speculation=speculation)
    with pytest.raises(EngineError, match=message):
        verify(with_draft)


def test_no_engine_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(EngineError, match=r"is not an engine: it has no engine.json; build one with"):
            verify(path)


def test_verifying_needs_no_torch() -> None:
    program = "import sys; import trierarch.builder.verify; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
