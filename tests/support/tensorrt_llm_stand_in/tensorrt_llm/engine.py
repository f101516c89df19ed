"""Engine: draws a token for each live request at a time, on a thread of its own. The drawing is in `drawing.py`."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any

from tensorrt_llm.controls import controls
from tensorrt_llm.drawing import draw, logprob_entry
from tensorrt_llm.kv_cache import KvCache
from tensorrt_llm.logits import logits_row, prompt_rows, tensor
from tensorrt_llm.lora_cache import LoraCache
from tensorrt_llm.output import RequestOutput, Response, metrics_of
from tensorrt_llm.telling import Telling

BLOCK_SIZE = 32
MAX_BLOCKS = 100


class _Running:
    def __init__(self, output: RequestOutput, shift: int, context_logits: Any) -> None:
        self.output = output
        self.shift = shift
        self.context_logits = context_logits
        self.drawn: list[int] = []


class Engine:
    """`<model>/stand_in.json` may set controls, for an engine in another process."""

    def __init__(self, model: Path, telling: Telling) -> None:
        settings = model / "stand_in.json"
        self._vocab_size = 97
        if settings.exists():
            for name, value in json.loads(settings.read_text(encoding="utf-8")).items():
                if name == "vocab_size":
                    self._vocab_size = value
                else:
                    setattr(controls, name, value)
        self.is_over = False
        self._telling = telling
        self.kv_cache = KvCache(telling.reuses, telling.num_events)
        self.records: deque[dict[str, Any]] = deque(maxlen=1000)
        self.lora = LoraCache()
        self._num_steps = 0
        self._changed = threading.Condition()
        self._waiting: list[RequestOutput] = []
        self._aborted: set[RequestOutput] = set()
        self._running: list[_Running] = []
        threading.Thread(target=self._run, name="stand-in", daemon=True).start()

    def submit(self, output: RequestOutput) -> None:
        with self._changed:
            self._waiting.append(output)
            self._changed.notify_all()

    def abort(self, output: RequestOutput) -> None:
        with self._changed:
            self._aborted.add(output)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self.is_over = True
            self._changed.notify_all()

    @property
    def num_live(self) -> int:
        with self._changed:
            return len(self._waiting) + len(self._running)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self.is_over)
            while not controls.gate.wait(0.05):
                if self.is_over:
                    return
            time.sleep(controls.step_seconds)
            with self._changed:
                if self.is_over:
                    return
                waiting, self._waiting = self._waiting, []
                aborted, self._aborted = self._aborted, set()
            for output in waiting:
                self._start(output)
            if self.is_over:
                return
            for running in list(self._running):
                if running.output in aborted:
                    self._finish(running, Response(finish_reason="cancelled"))
            for running in list(self._running):
                self._step(running)
            self._tell(len(waiting))

    def _start(self, output: RequestOutput) -> None:
        if controls.poison in output.prompt_token_ids:
            output.put(Response(error="the request is poisoned"))
        elif controls.fatal is not None and controls.fatal in output.prompt_token_ids:
            controls.is_dead = self.is_over = True  # the one that met it hears of it, and nobody else
            output.put(Response(error=RuntimeError(controls.fatal_text)))
        else:
            lora_request = output.arguments.get("lora_request")
            try:
                shift = 0 if lora_request is None else self.lora.enter(lora_request)
            except (RuntimeError, OSError, AssertionError) as error:
                output.put(Response(error=str(error)))
                return
            if output.arguments["sampling_params"].return_generation_logits and not self._telling.of_outputs:
                output.put(Response(error="gather_generation_logits must be enabled"))
                return
            with self._changed:
                self._running.append(_Running(output, shift, self._context_logits(output)))

    def _context_logits(self, output: RequestOutput) -> Any:
        """Of what is computed of a prompt: of an engine the other rows are there too, and nothing is in them."""
        if not output.arguments["sampling_params"].return_context_logits or not self._telling.of_prompts:
            return None
        num_reused = self.kv_cache.num_reused(output.prompt_token_ids, output.arguments.get("cache_salt"))
        rows = prompt_rows(output.prompt_token_ids, self._vocab_size)
        if self._telling.is_engine:
            rows[:num_reused] = [[0.0] * self._vocab_size] * num_reused
        else:
            rows = rows[num_reused:]
        return tensor(rows, self._telling.is_engine)

    def _step(self, running: _Running) -> None:
        output, params = running.output, running.output.arguments["sampling_params"]
        token = draw(output.prompt_token_ids, running.drawn, params, running.shift, self._vocab_size)
        is_end = token == params.end_id
        is_shown = not is_end or controls.shows_end_ids
        running.drawn.append(token)
        is_full = len(running.drawn) >= params.max_tokens
        reason = "stop" if is_end else "length" if is_full else None
        metrics = None
        if reason is not None and controls.has_perf_metrics and params.return_perf_metrics:
            metrics = metrics_of(1, 2, lambda seconds: timedelta(seconds=seconds))
        count = params.logprobs if self._telling.has_likeliest else 0
        logprobs = (logprob_entry(token, count, self._vocab_size),) if params.logprobs and is_shown else ()
        generation_logits = None
        if params.return_generation_logits:
            generation_logits = tensor([logits_row(token, self._vocab_size)], self._telling.is_engine)
        response = Response(
            (token,) if is_shown else (), logprobs, reason, metrics, generation_logits, running.context_logits
        )
        if reason is None:
            output.put(response)
        else:
            self._finish(running, response)

    def _finish(self, running: _Running, response: Response) -> None:
        with self._changed:
            self._running.remove(running)
        tokens = [*running.output.prompt_token_ids, *running.drawn]
        self.kv_cache.store(tokens, running.output.arguments.get("cache_salt"))
        lora_request = running.output.arguments.get("lora_request")
        if lora_request is not None:
            self.lora.leave(lora_request)
        running.output.put(response)

    def _tell(self, num_new: int) -> None:
        self._num_steps += 1
        if self._num_steps == controls.pause_at:
            controls.gate.clear()
        used = len(self._running)
        self.records.append(
            {
                "iter": self._num_steps,
                "numActiveRequests": used,
                "maxNumActiveRequests": 8,
                "gpuMemUsage": 1 << 30,
                "pinnedMemUsage": 1 << 20,
                "kvCacheStats": {
                    "maxNumBlocks": MAX_BLOCKS,
                    "freeNumBlocks": MAX_BLOCKS - used,
                    "usedNumBlocks": used,
                    "tokensPerBlock": BLOCK_SIZE,
                    "reusedBlocks": self._num_steps,
                },
                "inflightBatchingStats": {
                    "numScheduledRequests": used,
                    "numContextRequests": num_new,
                    "numGenRequests": used,
                    "numPausedRequests": 0,
                    "numCtxTokens": 5 * num_new,
                    "microBatchId": 3,
                },
                "specDecodingStats": {"numDraftTokens": 4, "numAcceptedTokens": 3, "numRequestsWithDraftTokens": 2},
            }
        )
