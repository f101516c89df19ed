"""A stand-in for TensorRT-LLM, and executors over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from support.tensorrt_llm_engines import manifest_of, record_of, write_engine
from support.tensorrt_llm_stand_in import importable, install
from support.token_stream import TokenStream
from trierarch.builder.manifest import EngineManifest, Flow
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.executors.tensorrt_llm import opening
from trierarch.python_backend.executors.tensorrt_llm.executor import TensorRTLLMExecutor
from trierarch.python_backend.request import Request, SamplingParams


@dataclass
class StandIn:
    """A release that is installed, and what runs on it."""

    release: str
    flow: Flow
    folder: Path
    controls: Any
    executors: list[TensorRTLLMExecutor] = field(default_factory=list)
    _num_requests: int = 0

    def manifest(self, **options: Any) -> EngineManifest:
        """Of an engine that can do all that this can; options of `manifest_of`, and `llm_args`."""
        return manifest_of(record_of(self.release, self.flow, **options.pop("llm_args", {})), **options)

    def open(
        self, manifest: EngineManifest | None = None, directories: AdapterDirectories | None = None
    ) -> TensorRTLLMExecutor:
        """An executor, which is closed after the test."""
        manifest = manifest or self.manifest()
        engine = write_engine(self.folder / f"engine{len(self.executors)}", manifest)
        executor = opening.open_tensorrt_llm(engine, manifest, directories)
        self.executors.append(executor)
        return executor

    def request(self, prompt: list[int], sampling: SamplingParams | None = None, **fields: Any) -> Request:
        """A request with an id of its own; greedy for 8 tokens unless said otherwise."""
        self._num_requests += 1
        return Request(
            request_id=f"r{self._num_requests}",
            prompt_token_ids=tuple(prompt),
            sampling=sampling or SamplingParams(max_tokens=8, temperature=0.0),
            arrival_time=time.monotonic(),
            **fields,
        )

    def ask(self, executor: TensorRTLLMExecutor, *arguments: Any, **fields: Any) -> TokenStream:
        """Submit `request` of these."""
        stream = TokenStream()
        executor.submit(self.request(*arguments, **fields), stream)
        return stream


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandIn]]:
    """Installs a release: 1.2 in its PyTorch flow unless said otherwise."""
    installed = opening.installed
    monkeypatch.setattr(opening, "installed", lambda: replace(installed(), gpu_architectures=("sm_90",)))
    made: list[StandIn] = []
    contexts = []

    def make(release: str = "1.2", flow: Flow = Flow.PYTORCH) -> StandIn:
        context = importable(install(tmp_path / "site", release))
        contexts.append(context)
        made.append(StandIn(release, flow, tmp_path, context.__enter__().controls))
        return made[-1]

    yield make
    for one in made:
        one.controls.gate.set()
        for executor in one.executors:
            executor.close()
    for context in contexts:
        context.__exit__(None, None, None)
