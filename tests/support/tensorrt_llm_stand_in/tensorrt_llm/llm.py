"""The LLMs of both flows."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

from tensorrt_llm import recorded
from tensorrt_llm.controls import controls
from tensorrt_llm.engine import Engine
from tensorrt_llm.output import RequestOutput, Told
from tensorrt_llm.telling import Telling

_GENERATE = "tensorrt_llm.LLM.generate_async"


class _LLM:
    flow = ""
    args_class = ""

    def __init__(self, model: str, **arguments: Any) -> None:
        known = recorded.params_of(f"{self.flow}.LLM.__init__") | set(recorded.fields_of(self.args_class))
        for key in arguments:
            if key not in known:
                raise ValueError(f"{self.args_class} got invalid argument: {key}")
        controls.num_cuda_touches += 1
        if controls.opening_error is not None:
            raise RuntimeError(controls.opening_error)
        assert Path(model).is_dir(), model
        self.model, self.arguments = model, arguments
        self._loop = asyncio.get_running_loop()
        telling = Telling.of(self.flow, Path(model), arguments)
        self._engine: Engine | None = Engine(Path(model), telling)
        self._stats, self._events = Told(self._engine.records), Told(self._engine.kv_cache.events)
        controls.llms.append(self)

    def generate_async(self, inputs: list[int], **arguments: Any) -> RequestOutput:
        assert asyncio.get_running_loop() is self._loop, "each call from the loop that the LLM was made in"
        unknown = arguments.keys() - recorded.params_of(_GENERATE)
        if unknown:
            raise TypeError(f"generate_async() got an unexpected keyword argument {unknown.pop()!r}")
        if self._engine is None or self._engine.is_over:
            raise RuntimeError("LLM is shutting down")
        params = arguments["sampling_params"]
        if params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        while controls.submission_hangs:
            time.sleep(0.01)
        controls.submissions.append({"inputs": inputs, **arguments})
        output = RequestOutput.make(inputs, arguments, self._engine, self._loop)
        self._engine.submit(output)
        self._stats.mark_undone()
        self._events.mark_undone()
        return output

    def get_stats_async(self, timeout: float | None = 2) -> Told:
        self._stats.timeout = timeout
        return self._stats

    def get_kv_cache_events_async(self, timeout: float | None = 2) -> Told:
        if not controls.submissions:
            raise RuntimeError("IterationResult is not properly instantiated.")
        self._events.timeout = timeout
        return self._events

    def shutdown(self) -> None:
        if controls.shutdown_hangs:
            threading.Event().wait()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            controls.llms.remove(self)


class TorchLLM(_LLM):
    flow, args_class = "tensorrt_llm", "TorchLlmArgs"


class EngineLLM(_LLM):
    flow, args_class = "tensorrt_llm._tensorrt_engine", "TrtLlmArgs"


if recorded.RELEASE != "1.0":

    def _check_health(self: _LLM) -> bool:
        return self._engine is not None and not controls.is_dead

    _LLM._check_health = _check_health  # type: ignore[attr-defined]
