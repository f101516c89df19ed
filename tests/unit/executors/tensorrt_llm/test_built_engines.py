"""What the builder writes, the executor opens: each flow of each release, by the stand-in for the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import VOCAB_SIZE, random_checkpoint
from support.trtllm_build import install as install_build
from support.trtllm_models import build_for, record_of
from trierarch.builder import machine
from trierarch.builder.manifest import EngineManifest, Flow
from trierarch.builder.tensorrt_llm.compile import compile_engine
from trierarch.builder.verify import verify
from trierarch.python_backend.executors.tensorrt_llm import opening

FLOWS = [
    ("1.0", Flow.ENGINE),
    ("1.0", Flow.PYTORCH),
    ("1.2", Flow.ENGINE),
    ("1.2", Flow.PYTORCH),
    ("1.3", Flow.PYTORCH),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"max_adapters": 4, "kv_cache_bytes": 1 << 20, "enable_prefix_caching": False},
    "drafted": {"draft": "", "max_draft_tokens": 3},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint("mistral", tmp_path_factory.mktemp("model") / "hf")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("release, flow", FLOWS)
def test_a_built_engine_answers(
    release: str,
    flow: Flow,
    options: dict[str, Any],
    checkpoint: Path,
    stand_in: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "cuda_architectures", lambda: ("sm_90",))
    monkeypatch.setenv("PATH", str(install_build(tmp_path / "bin")), prepend=":")
    chosen = {name: str(checkpoint) if name == "draft" else value for name, value in options.items()}
    engine = tmp_path / "built"
    build_for(checkpoint, engine, release, tensorrt_llm_flow=flow, compile=False, **chosen)
    library = stand_in(release, flow)
    if flow is Flow.ENGINE:
        compile_engine(engine, here=replace(opening.installed(), gpu_architectures=("sm_90",)))
    manifest = verify(engine)
    controls = {"vocab_size": VOCAB_SIZE}
    (engine / record_of(manifest).model / "stand_in.json").write_text(json.dumps(controls))
    executor = opening.open_tensorrt_llm(engine, EngineManifest.load(engine), None)
    library.executors.append(executor)
    tokens, last = library.ask(executor, [1, 2, 3]).finish()
    assert tokens
    assert last.finish_reason is not None
