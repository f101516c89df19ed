"""Engines for TensorRT-LLM, as the builder would write them, for the stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.random_engine import tiny_architecture, tiny_manifest
from support.tensorrt_llm_stand_in import TENSORRT, VERSIONS
from trierarch.builder.manifest import (
    MANIFEST_NAME,
    CompiledBy,
    EngineManifest,
    Flow,
    Lora,
    Target,
    TensorRTLLM,
    Tokens,
)
from trierarch.builder.verify import digest_file

VOCAB = 97
GPU = "sm_90"
FLOWS = [
    ("1.0", Flow.ENGINE),
    ("1.0", Flow.PYTORCH),
    ("1.2", Flow.ENGINE),
    ("1.2", Flow.PYTORCH),
    ("1.3", Flow.PYTORCH),
]
"""Every flow of every release that is recorded."""


def record_of(release: str, flow: Flow = Flow.PYTORCH, **llm_args: Any) -> TensorRTLLM:
    """The record of an engine that can do all that the release can, but for what it must give up cached prefixes for."""
    defaults: dict[str, Any] = {"guided_decoding_backend": "xgrammar", "gather_generation_logits": True}
    build_config = None
    if flow is Flow.ENGINE:
        build_config = {"gather_context_logits": True}
    elif release == "1.0":
        defaults["enable_trtllm_sampler"] = True
    elif release in ("1.1", "1.2"):
        defaults["sampler_type"] = "TRTLLMSampler"
    compiled_by = None
    if flow is Flow.ENGINE:
        compiled_by = CompiledBy(tensorrt_llm=VERSIONS[release], tensorrt=TENSORRT, cuda="13.0", gpu_architecture=GPU)
    return TensorRTLLM(
        version=release,
        flow=flow,
        model="model",
        llm_args={**defaults, **llm_args},
        compiled_by=compiled_by,
        build_config=build_config,
    )


def manifest_of(
    record: TensorRTLLM, lora: Lora | None = None, eos: tuple[int, ...] = (), **limits: int
) -> EngineManifest:
    """The stand-in's vocabulary, sequences of at most 64 tokens, and no end tokens unless said otherwise."""
    base = tiny_manifest(tiny_architecture(vocab_size=VOCAB), **limits)
    return base.model_copy(
        update={
            "target": Target.TENSORRT_LLM,
            "tensorrt_llm": record,
            "lora": lora,
            "tokens": Tokens(bos=None, eos=eos, pad=0, add_bos=False),
        }
    )


def write_engine(engine: Path, manifest: EngineManifest, **settings: Any) -> Path:
    """Write what the executor opens; `settings` are controls of the stand-in, for one in another process.

    Files that the manifest names already are there.
    """
    record = manifest.tensorrt_llm
    assert record is not None
    contents: dict[str, Any] = {
        "config.json": {"build_config": record.build_config or {}},
        "stand_in.json": {"vocab_size": manifest.architecture.vocab_size, **settings},
    }
    if record.flow is Flow.ENGINE:
        contents["rank0.engine"] = {}
    files = dict(manifest.files)
    for name, content in contents.items():
        path = engine / record.model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        files[f"{record.model}/{name}"] = digest_file(path)
    manifest = manifest.model_copy(update={"files": files})
    (engine / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return engine
