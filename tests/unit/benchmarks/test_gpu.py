"""Benchmark `gpu`: what its figures are worked out from, that one failure leaves the rest, and the harness on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from support.random_engine import tiny_architecture
from trierarch.benchmarks import gpu, gpu_workshop
from trierarch.benchmarks.gpu_engine import step_bytes, write_engine
from trierarch.benchmarks.gpu_limits import GpuLimits, file_rate
from trierarch.benchmarks.gpu_parts import QUICK, Contestant, Setting, prefill_flop
from trierarch.benchmarks.gpu_session import GpuSession
from trierarch.benchmarks.intervals import idle_share
from trierarch.benchmarks.random_checkpoint import LLAMA_3_1_8B, TINY, RandomCheckpoint
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.subjects.subject import SubjectFailed, Timing
from trierarch.benchmarks.subjects.worker import WorkerSubject
from trierarch.benchmarks.workers.protocol import Ready, Steering, TokenIds
from trierarch.benchmarks.workload import Workload
from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.builder.manifest import DType, KvType, Limits, WeightType
from trierarch.builder.verify import verify
from trierarch.python_backend.executors.torch.weights import load_weights

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("intervals", "share"),
    [
        ([(0, 10)], 0.0),
        ([(0, 1), (3, 4)], 0.5),
        ([(3, 4), (0, 1)], 0.5),
        ([(0, 4), (1, 2), (2, 6), (8, 10)], 0.2),  # one within another, one over its end
    ],
)
def test_idle_is_what_no_interval_covers(intervals: list[tuple[float, float]], share: float) -> None:
    assert idle_share(intervals) == pytest.approx(share)


@pytest.mark.parametrize("intervals", [[], [(1.0, 1.0)]])
def test_nothing_recorded_is_no_share(intervals: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="recorded"):
        idle_share(intervals)


def test_a_prompt_s_work_is_that_of_its_products() -> None:
    """Two tokens, two layers: 4 query heads and 2 of keys of 8, hidden 32, inner 48, vocabulary 50."""
    projections = 32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 48
    attention = (1 + 2) * 32 * 2  # each token with those up to itself: scores, then values
    expected = 2 * (2 * (2 * projections + attention) + 32 * 50)
    assert prefill_flop(tiny_architecture(), 2) == expected


def test_it_has_the_real_model_s_size() -> None:
    shapes = RandomCheckpoint(LLAMA_3_1_8B, 0, CPU).shapes
    assert sum(prod(shape) for shape in shapes.values()) == 8_030_261_248


@pytest.mark.parametrize("quantization", [None, WeightType.FP8, WeightType.INT4])
def test_engines_of_random_weights_are_whole_and_the_same_again(
    quantization: WeightType | None, tmp_path: Path
) -> None:
    manifests = [
        write_engine(
            tmp_path / name,
            RandomCheckpoint(TINY, 3, CPU),
            DType.BFLOAT16,
            Limits(max_seq_len=64),
            quantization=quantization,
            kv_dtype=KvType.FP8,
            kv_memory_fraction=0.5,
        )
        for name in ("first", "second")
    ]
    assert verify(tmp_path / "first", digests=True) == manifests[0]
    assert manifests[0].files == manifests[1].files
    weights = load_weights(tmp_path / "first", manifests[0], CPU)
    size = (tmp_path / "first" / "weights.safetensors").stat().st_size
    table = weights["embed.weight"]
    assert isinstance(table, torch.Tensor)
    assert 0.01 < table.float().std() < 0.03
    assert step_bytes(manifests[0]) == size - table.nbytes
    assert file_rate(tmp_path / "first" / "weights.safetensors") > 0


class Stub(WorkerSubject):
    """Answers in a second for each prompt and a tenth for each token, or fails."""

    def __init__(self, name: str, fails_at: str = "") -> None:
        self._name = name
        self._fails_at = fails_at
        self.most_prompts = 0
        self.is_closed = False

    @property
    def name(self) -> str:
        return self._name

    def start(self) -> Ready:
        if self._fails_at == "start":
            raise SubjectFailed(f"{self.name} did not start")
        return Ready("0", {"open_seconds": 1.0, "kv_tokens": 72})

    def generate(self, prompts: list[TokenIds], num_output_tokens: int, steering: Steering | None = None) -> Timing:
        if self._fails_at == "load" and len(prompts) == 3:
            raise SubjectFailed(f"{self.name} ended")
        self.most_prompts = max(self.most_prompts, len(prompts))
        seconds = 1.0 + 0.1 * num_output_tokens
        return Timing(
            seconds, tuple([0] * num_output_tokens for _ in prompts), {"idle_share": 0.015, "launches": 300.0}
        )

    def seconds_since_start(self) -> float:
        return 7.0

    def close(self) -> None:
        self.is_closed = True


def contestant(subject: Stub, kind: str, *parts: str, **fields: Any) -> Contestant:
    return Contestant(name=subject.name, subject=subject, kind=kind, parts=parts, **fields)


def session_of(*contestants: Contestant) -> GpuSession:
    limits = GpuLimits("a GPU", memory_gb_per_s=1.0, bf16_tflop_per_s=1.0)
    sizes = replace(QUICK, loads=((16, 8),), gap_streams=(1,))
    setting = Setting(Workload(seed=1), sizes, limits, tiny_architecture())
    return GpuSession(contestants, setting, lambda message: None)


def test_figures_are_shares_of_what_the_device_gives() -> None:
    ours = Stub("executor-fp8")
    session = session_of(
        contestant(ours, "fp8", "cold", "decode", "throughput", step_bytes=85_000_000, file_bytes=120, file_rate=100.0),
        contestant(Stub("profile-fp8"), "fp8", "gap"),
    )
    assert len(list(session.run())) == 4
    rows = {row.figure: row for row in session.rows()}
    assert rows["cold_start"].ours == 7.0
    assert rows["load_share"].ours == pytest.approx(100 * 1.2 / 2.1)  # opened in 1 s, first token in 1.1
    assert rows["decode_b1_fp8"].ours == pytest.approx(10)
    assert rows["bandwidth_share_fp8"].ours == pytest.approx(85)
    assert rows["throughput_16_8"].ours == pytest.approx(3 * 8 / 1.8)  # 72 tokens hold three requests of 24
    assert rows["host_gap_b1"].ours == pytest.approx(1.5)
    assert rows["host_gap_b1"].met is True
    assert rows["launches_b1"].ours == 300
    assert ours.is_closed
    assert session.notes == []


def test_whoever_fails_is_noted_and_the_others_go_on() -> None:
    subjects = Stub("executor-fp8", "load"), Stub("vllm", "start"), Stub("transformers"), Stub("executor-bf16")
    session = session_of(
        contestant(subjects[0], "fp8", "decode", "throughput", "gap"),
        contestant(subjects[1], "bf16", "decode"),
        contestant(subjects[2], "bf16", "decode"),
        contestant(subjects[3], "bf16", "decode", "adapters", adapters=("a", "b")),
    )
    list(session.run())
    assert session.notes == ["executor-fp8 left: executor-fp8 ended", "vllm left: vllm did not start"]
    assert all(subject.is_closed for subject in subjects)
    rows = {row.figure: row for row in session.rows()}
    assert rows["decode_b1_bf16"].rival == "transformers"
    assert rows["decode_b1_bf16"].ratio == pytest.approx(1)
    assert rows["adapters_share"].ours == pytest.approx(100)
    assert "throughput_16_8" not in rows


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (Options(device="cpu"), ConfigError, "try the harness with --device cpu --quick"),
        (Options(device="cpu", is_quick=True, parts=("nothing",)), ConfigError, "gpu has cold, decode"),
        (Options(device="cpu", is_quick=True, rivals=("nobody",)), ConfigError, "gpu has vllm, "),
    ],
)
def test_what_cannot_be_measured_is_refused(options: Options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        next(gpu.run(options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_remedy_is_told() -> None:
    with pytest.raises(
        ResourceError, match=r"a machine with an NVIDIA GPU .* or try the harness with --device cpu --q"
    ):
        next(gpu.run(Options()))


def test_the_harness_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real engine in a real worker, profiled; the other parts differ from it in what they ask."""
    monkeypatch.setattr(gpu_workshop, "TRACE", tmp_path / "trace.json.gz")
    options = Options(is_quick=True, device="cpu", rivals=(), parts=("gap",))
    *_, report = gpu.run(options)
    assert report.is_complete
    assert report.notes == ()
    rows = {row.figure: row.ours for row in report.rows}
    assert rows.keys() == {"host_gap_b1", "host_gap_b2", "launches_b1", "launches_b2"}
    assert all(
        ours is not None and (0 <= ours <= 100 or figure.startswith("launches")) for figure, ours in rows.items()
    )
    assert (tmp_path / "trace.json.gz").stat().st_size > 0
    assert json.loads(report.to_json())["machine"]["gpu"] == "none"
