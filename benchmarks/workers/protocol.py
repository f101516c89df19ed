"""The conversation between a benchmark and a worker, a process that runs one engine: JSON lines on standard streams.

    worker    {"version": ..., "settings": {...}, "pid": ..., "started": ...}      once, when the engine is loaded
    driver    {"prompts": [[id, ...], ...], "num_output_tokens": n}
              and "steering": {"speculation": ..., "tenant": ..., "adapters": [...]} to a worker that can be steered
    worker    {"seconds": s, "token_ids": [[id, ...], ...]}                        all prompts at once, to the last token;
              and "counters": {name: value, ...} of that call, where the worker counts
    driver    end of file: the worker closes its engine and ends

A worker's failure is {"error": ...}, after which it ends. Whatever an engine itself prints goes to standard error.
Workers run under a rival's own Python, where neither Trierarch nor its dependencies are installed: this module needs
the standard library alone. Every engine is given the limits below, so that none is measured with more room.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

TokenIds = list[int]

_BATCH_VARIABLE: Final = "TRIERARCH_BENCHMARK_MAX_BATCH_SIZE"
_LENGTH_VARIABLE: Final = "TRIERARCH_BENCHMARK_MAX_SEQ_LEN"
_ADAPTERS_VARIABLE: Final = "TRIERARCH_BENCHMARK_ADAPTERS"
MAX_BATCH_SIZE: Final = int(os.environ.get(_BATCH_VARIABLE, "32"))
MAX_SEQ_LEN: Final = int(os.environ.get(_LENGTH_VARIABLE, "1024"))
KV_CACHE_BYTES: Final = 1 << 30
NUM_THREADS: Final = len(os.sched_getaffinity(0))


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it, as the kernel lists them."""
    try:
        listed = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return not listed.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


TORCH_DTYPE: Final = "bfloat16" if _multiplies_bfloat16() else "float32"
"""What engines on torch compute in: without instructions for bfloat16 it takes them a hundred times as long as float32."""


def limits_environment(max_batch_size: int, max_seq_len: int) -> dict[str, str]:
    """What gives a worker other limits."""
    return {_BATCH_VARIABLE: str(max_batch_size), _LENGTH_VARIABLE: str(max_seq_len)}


def adapters_environment(directory: Path) -> dict[str, str]:
    """What tells a worker where its adapters lie, each a directory as PEFT saves it."""
    return {_ADAPTERS_VARIABLE: str(directory)}


def adapter_directories() -> dict[str, Path]:
    """Name -> directory of every adapter that the worker is to load, in the order of names."""
    return {path.name: path for path in sorted(Path(os.environ[_ADAPTERS_VARIABLE]).iterdir())}


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker says once its engine is loaded."""

    version: str
    settings: dict[str, Any] = field(default_factory=dict)
    """What was set beyond the engine's defaults, for the record."""
    pid: int = field(default_factory=os.getpid)
    """Root of the processes whose memory counts."""
    started: float | None = None
    """`time.monotonic()` when that process was started, where it is not the worker itself."""


Speculated = str | int
"""How far tokens are guessed ahead: ADAPTIVE, or always this many at most; 0 guesses nothing."""
ADAPTIVE: Final = "adaptive"


@dataclass(frozen=True, slots=True)
class Steering:
    """How a call is to be served, beside its prompts."""

    speculation: Speculated = ADAPTIVE
    tenant: str = ""
    """Cached prefixes and the history of answers are shared within it."""
    adapters: tuple[str, ...] = ()
    """Names, for the prompts in turn; none is the base model."""


class Worker(Protocol):
    """One engine: greedy, deaf to end tokens, all prompts of a call in flight together."""

    @property
    def ready(self) -> Ready:
        """What it is."""
        ...

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """Exactly `num_output_tokens` token ids for each prompt."""
        ...

    def close(self) -> None:
        """End the engine."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A worker that counts."""

    def counters(self) -> dict[str, float]:
        """Of the last `generate`."""
        ...


@runtime_checkable
class Steered(Protocol):
    """A worker that can be steered."""

    def steer(self, steering: Steering) -> None:
        """Serve the next `generate` so."""
        ...


def serve(open_worker: Callable[[Path], Worker]) -> None:
    """Run the worker of the model named by the first argument until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # engines print where they like; replies must stay whole lines of their own

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    try:
        worker = open_worker(Path(sys.argv[1]))
        try:
            reply(asdict(worker.ready))
            for line in sys.stdin:
                ask = json.loads(line)
                if isinstance(worker, Steered):
                    worker.steer(Steering(**ask.get("steering", {})))
                started = time.perf_counter()
                token_ids = worker.generate(ask["prompts"], ask["num_output_tokens"])
                answer = {"seconds": time.perf_counter() - started, "token_ids": token_ids}
                reply(answer | ({"counters": worker.counters()} if isinstance(worker, Counting) else {}))
        finally:
            worker.close()
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        raise
