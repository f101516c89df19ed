"""The benchmarks by name. What one needs is imported when it runs, so that listing them costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trierarch.benchmarks.report import Report
from trierarch.builder.manifest import DType

DEFAULT_SEED: Final = 20_261_121
Say = Callable[[str], None]
"""Hears what is going on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a benchmark is run."""

    is_quick: bool = False
    """Try the harness in seconds; the figures mean nothing."""
    rivals: tuple[str, ...] | None = None
    """Names of rivals to measure beside ours; None is all that are installed."""
    seed: int = DEFAULT_SEED
    streams: tuple[int, ...] = ()
    """Numbers of concurrent streams in place of the benchmark's own; none keeps those."""
    dtype: DType = DType.BFLOAT16
    """Of our unquantised engines; rivals keep what their makers chose."""
    device: str = "cuda"
    """That `gpu` runs on; `cpu` only tries its harness."""
    parts: tuple[str, ...] = ()
    """Of a benchmark that can be run in parts; none is all of them."""
    say: Say = lambda message: None
    """Hears what is going on."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One entry: a module of this package with `run(options)`, which yields the report as it grows."""

    name: str
    summary: str

    def run(self, options: Options) -> Iterator[Report]:
        """Run it: the report after each figure, and the complete one last."""
        reports: Iterator[Report] = importlib.import_module(f"trierarch.benchmarks.{self.name}").run(options)
        return reports


BENCHMARKS: Final[dict[str, Benchmark]] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "cpu", "the demo model on this CPU: decode, batches, TTFT, prefix, cold start, memory, beside rivals"
        ),
        Benchmark(
            "quantized", "the same with weights of 8 and 4 bits: decode, batches, TTFT, size, accuracy, beside rivals"
        ),
        Benchmark("scaling", "tokens a second against concurrency and context, beside the roofline, as a plot too"),
        Benchmark(
            "speculation",
            "what guessing ahead is worth: copies, edits, prose, agents, against streams and draft lengths",
        ),
        Benchmark("lora", "what adapters cost: mixed in one batch, a thousand registered, and cold"),
        Benchmark("wake", "from Triton asleep to the first streamed token, alone and for many; memory while asleep"),
        Benchmark("ordeal", "a thousand random wakes, sleeps and kills of Triton, and what became of every request"),
        Benchmark("gateway", "what the OpenAI API costs beside Triton's own gRPC: rates, time to first token, memory"),
        Benchmark(
            "overload", "four times the load that there is room for: who is answered, who refused, and what it costs"
        ),
        Benchmark(
            "gpu", "an 8B model on one GPU: decode, throughput, prefill, adapters, host gap, cold start, beside rivals"
        ),
        Benchmark("kv_waste", "KV slots allocated but unused under a mixed load of thousands of sequences"),
    )
}
