"""What the builder writes, the executor opens: each flow of each release, by the stand-in for the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.adapters import random_adapter
from support.checkpoints import VOCAB_SIZE, random_checkpoint
from support.tensorrt_llm_engines import FLOWS
from support.trtllm_build import install as install_build
from support.trtllm_models import build_for, record_of
from trierarch.builder import machine
from trierarch.builder.manifest import EngineManifest, Flow
from trierarch.builder.tensorrt_llm.compile import compile_engine
from trierarch.builder.verify import verify
from trierarch.python_backend.executors.factory import open_directories
from trierarch.python_backend.executors.tensorrt_llm import opening
from trierarch.python_backend.request import SamplingParams

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


@pytest.mark.parametrize("release, flow", FLOWS)
def test_an_adapter_in_its_engine_is_sent_along(
    release: str,
    flow: Flow,
    checkpoint: Path,
    stand_in: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "cuda_architectures", lambda: ("sm_90",))
    monkeypatch.setenv("PATH", str(install_build(tmp_path / "bin")), prepend=":")
    random_adapter(checkpoint, tmp_path / "peft", rank=4)
    engine = tmp_path / "built"
    options = {"max_adapters": 2, "max_lora_rank": 8, "adapters": {"french": tmp_path / "peft"}, "gather_logits": True}
    build_for(checkpoint, engine, release, tensorrt_llm_flow=flow, compile=False, **options)
    library = stand_in(release, flow)
    if flow is Flow.ENGINE:
        compile_engine(engine, here=replace(opening.installed(), gpu_architectures=("sm_90",)))
    manifest = verify(engine)
    (engine / record_of(manifest).model / "stand_in.json").write_text(json.dumps({"vocab_size": VOCAB_SIZE}))
    executor = opening.open_tensorrt_llm(engine, manifest, open_directories(engine, manifest, ()))
    library.executors.append(executor)
    assert [info.name for info in executor.adapters()] == ["french"]
    plain, adapted = (
        library.ask(executor, [1, 2, 3], adapter=adapter).finish()[0]
        for adapter in (None, executor.find_adapter("french"))
    )
    assert plain != adapted
    sent = library.controls.submissions[-1]["lora_request"]
    assert sent.lora_name == "french"
    assert (Path(sent.lora_path) / "adapter_config.json").is_file()
    told = SamplingParams(max_tokens=2, temperature=0.0, return_generation_logits=True)
    deltas = library.ask(executor, [1, 2, 3], told)
    assert len(deltas.next().generation_logits or ()) == 1
