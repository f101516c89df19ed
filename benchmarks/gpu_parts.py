"""What is asked of one subject on a GPU: each part gives figures by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from trierarch.benchmarks.gpu_limits import GpuLimits
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.subjects.subject import AttemptFailed, Timing
from trierarch.benchmarks.subjects.worker import WorkerSubject
from trierarch.benchmarks.workers.gpu_settings import FIRST_STEP, NUM_STEPS
from trierarch.benchmarks.workers.protocol import Ready, Steering, TokenIds
from trierarch.benchmarks.workload import Workload
from trierarch.builder.manifest import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A run's lengths."""

    decode_prompt: int = 128
    decode_tokens: int = 256
    loads: tuple[tuple[int, int], ...] = ((1000, 1000), (128, 2048))
    """Prompt and output tokens of each request."""
    default_requests: int = 256
    """Of a load, where our engine did not say how many fit."""
    prefill_tokens: int = 8192
    num_adapters: int = 32
    adapter_rank: int = 8
    adapter_streams: int = 64
    adapter_tokens: int = 128
    """Of each of these streams' prompts, and of its answers."""
    gap_streams: tuple[int, ...] = (1, 32)
    num_repeats: int = 3
    max_streams: int = 1024

    @property
    def max_seq_len(self) -> int:
        """Of the longest request."""
        return max(self.prefill_tokens + 1, self.decode_prompt + self.decode_tokens, *map(sum, self.loads))


QUICK: Final = Sizes(
    decode_prompt=8,
    decode_tokens=16,
    loads=((16, 8), (8, 16)),
    default_requests=4,
    prefill_tokens=64,
    num_adapters=2,
    adapter_rank=2,
    adapter_streams=4,
    adapter_tokens=8,
    gap_streams=(1, 2),
    num_repeats=1,
    max_streams=8,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One engine: ours in one precision, or a rival's."""

    name: str
    subject: WorkerSubject
    kind: str
    """`bf16`, `fp8` or `int4`: of the weights, and what figures of these kinds are told apart by."""
    parts: tuple[str, ...]
    """Of PARTS, in this order."""
    step_bytes: int | None = None
    """Of weights that a step reads; None of rivals, whose files are not read here."""
    file_bytes: int = 0
    file_rate: float = 0.0
    """Bytes a second that its weights were read at before it started."""
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """What parts need beside the contestant."""

    workload: Workload
    """Only for its prompts."""
    sizes: Sizes
    limits: GpuLimits
    architecture: Architecture
    kv_tokens: int | None = None
    """That our engine has room for, once it said so."""

    def num_requests(self, num_tokens: int) -> int:
        """Of so many tokens each, as many as fit our engine: those of a load."""
        if self.kv_tokens is None:
            return self.sizes.default_requests
        return max(1, min(self.sizes.max_streams, self.kv_tokens // num_tokens))


Part = Callable[[Setting, Contestant, Ready], Iterator[tuple[str, Measurement]]]


def cold(setting: Setting, contestant: Contestant, ready: Ready) -> Iterator[tuple[str, Measurement]]:
    """From the process's start, and from the engine's opening, to the first token; it must come first."""
    timing = _ask(contestant, [setting.workload.prompt("cold", setting.sizes.decode_prompt)], 1)
    yield "cold_start", Measurement.of([contestant.subject.seconds_since_start()])
    seconds = ready.settings["open_seconds"] + timing.seconds
    yield "load_share", Measurement.of([100 * contestant.file_bytes / contestant.file_rate / seconds])


def decode(setting: Setting, contestant: Contestant, _: Ready) -> Iterator[tuple[str, Measurement]]:
    """One stream's tokens a second behind its first, and the bytes that takes."""
    sizes = setting.sizes
    rates = []
    for repeat in range(sizes.num_repeats):
        first, whole = (
            [setting.workload.prompt(f"decode/{repeat}/{key}", sizes.decode_prompt)] for key in ("first", "whole")
        )
        seconds_of_first = _ask(contestant, first, 1).seconds
        seconds = _ask(contestant, whole, sizes.decode_tokens).seconds - seconds_of_first
        if seconds <= 0:
            raise AttemptFailed(f"{contestant.name}: one token took longer than {sizes.decode_tokens}")
        rates.append((sizes.decode_tokens - 1) / seconds)
    yield f"decode_b1_{contestant.kind}", Measurement.of(rates)
    if contestant.step_bytes is not None:
        per_second = setting.limits.memory_gb_per_s * 1e9
        shares = [100 * rate * contestant.step_bytes / per_second for rate in rates]
        yield f"bandwidth_share_{contestant.kind}", Measurement.of(shares)


def throughput(setting: Setting, contestant: Contestant, _: Ready) -> Iterator[tuple[str, Measurement]]:
    """Output tokens a second of all requests, from the first one's start to the last one's end, prefill included."""
    for num_in, num_out in setting.sizes.loads:
        count = setting.num_requests(num_in + num_out)
        prompts = setting.workload.prompts(f"load/{num_in}", [num_in] * count)
        timing = _ask(contestant, prompts, num_out)
        yield f"throughput_{num_in}_{num_out}", Measurement.of([timing.num_tokens / timing.seconds])


def prefill(setting: Setting, contestant: Contestant, _: Ready) -> Iterator[tuple[str, Measurement]]:
    """A long prompt's tokens a second, and the multiply-adds that takes."""
    length = setting.sizes.prefill_tokens
    seconds = [
        _ask(contestant, [setting.workload.prompt(f"prefill/{repeat}", length)], 1).seconds
        for repeat in range(setting.sizes.num_repeats)
    ]
    yield f"prefill_{contestant.kind}", Measurement.of(length / one for one in seconds)
    if contestant.step_bytes is not None:
        work = prefill_flop(setting.architecture, length)
        shares = [100 * work / one / (setting.limits.bf16_tflop_per_s * 1e12) for one in seconds]
        yield f"gemm_share_{contestant.kind}", Measurement.of(shares)


def adapters(setting: Setting, contestant: Contestant, _: Ready) -> Iterator[tuple[str, Measurement]]:
    """Rates of streams over many adapters and over none, taken in turns."""
    sizes = setting.sizes
    shares = []
    for repeat in range(sizes.num_repeats):
        seconds = {}
        for names in ((), contestant.adapters):
            prompts = setting.workload.prompts(
                f"adapters/{repeat}/{len(names)}", [sizes.adapter_tokens] * sizes.adapter_streams
            )
            if repeat == 0:  # adapters are loaded, and shapes seen
                _ask(contestant, prompts, 2, names)
            seconds[bool(names)] = _ask(contestant, prompts, sizes.adapter_tokens, names).seconds
        shares.append(100 * seconds[False] / seconds[True])
    yield "adapters_share", Measurement.of(shares)


def gap(setting: Setting, contestant: Contestant, _: Ready) -> Iterator[tuple[str, Measurement]]:
    """Of decode steps, what the device waits for the host, and kernels and copies in one; needs a worker that profiles."""
    for count in setting.sizes.gap_streams:
        prompts = setting.workload.prompts(f"gap/{count}", [setting.sizes.decode_prompt] * count)
        timing = _ask(contestant, prompts, FIRST_STEP + NUM_STEPS + 2)
        yield f"host_gap_b{count}", Measurement.of([100 * timing.counters["idle_share"]])
        yield f"launches_b{count}", Measurement.of([timing.counters["launches"]])


PARTS: Final[Mapping[str, Part]] = {
    "cold": cold,
    "decode": decode,
    "throughput": throughput,
    "prefill": prefill,
    "adapters": adapters,
    "gap": gap,
}


def prefill_flop(architecture: Architecture, length: int) -> float:
    """Multiplications and additions of a dense prompt: every matrix for every token, the logits' once, causal attention."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    queries = architecture.num_heads * architecture.head_dim
    keys = architecture.num_kv_heads * architecture.head_dim
    matrices = hidden * (2 * queries + 2 * keys) + 3 * hidden * inner
    attention = 2 * queries * (length + 1) / 2  # of scores and of values, a token on average
    return 2.0 * (length * architecture.num_layers * (matrices + attention) + hidden * architecture.vocab_size)


def warm_up(setting: Setting, contestant: Contestant) -> None:
    """Let the subject see its shapes once."""
    length = setting.sizes.decode_prompt
    _ask(contestant, [setting.workload.prompt("warm-up", length)], 4)
    _ask(contestant, setting.workload.prompts("warm-up/many", [length] * min(32, setting.sizes.max_streams)), 4)


def _ask(contestant: Contestant, prompts: list[TokenIds], num_tokens: int, names: tuple[str, ...] = ()) -> Timing:
    return contestant.subject.generate(prompts, num_tokens, Steering(adapters=names) if names else None)
