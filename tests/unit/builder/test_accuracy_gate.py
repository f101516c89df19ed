"""A quantised build tells what quantization cost, and fails where that is too much."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import random_checkpoint
from trierarch.builder import weight as weight_module
from trierarch.builder.build import build
from trierarch.builder.codes import Codes
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.evaluation_text import BUNDLED
from trierarch.builder.manifest import Accuracy, DType, EngineManifest
from trierarch.builder.quantize import quantize
from trierarch.builder.verify import verify
from trierarch.orchestrator.engine_summary import summary_rows
from trierarch.python_backend.executors.torch.teacher_forcing import teacher_forced_logits

# Far above what these random models lose to int4, and far below what a ruined one does.
TOLERANT = 0.3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint("llama", tmp_path / "hf")


def config_of(checkpoint: Path, output: Path, quantization: str | None = "int8", **options: Any) -> BuildConfig:
    chosen = {"dtype": DType.FLOAT32, "compile": False} | options
    return BuildConfig.model_validate(
        {"model": str(checkpoint), "output": output, "quantization": quantization, **chosen}
    )


def accuracy_of(manifest: EngineManifest) -> Accuracy:
    assert manifest.accuracy is not None
    return manifest.accuracy


class Recorder:
    """Progress that remembers, and may stop the build at a stage."""

    def __init__(self, stop_at: str = "", stop: BaseException | None = None) -> None:
        self.stages: dict[str, tuple[int | None, str]] = {}
        self.done: dict[str, int] = {}
        self._stop_at, self._stop = stop_at, stop

    def stage(self, name: str, total: int | None, unit: str = "bytes") -> None:
        self.stages[name] = (total, unit)

    def advance(self, amount: int) -> None:
        name = list(self.stages)[-1]
        self.done[name] = self.done.get(name, 0) + amount
        if self._stop is not None and name == self._stop_at:
            raise self._stop


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_the_manifest_says_what_quantization_cost(is_compiled: bool, checkpoint: Path, tmp_path: Path) -> None:
    found = {}
    kinds = ("int8", "int4") if is_compiled else ("int8", "fp8", "int4")  # fp8 has no kernels for a CPU
    for asked in kinds:
        config = config_of(checkpoint, tmp_path / asked, asked, compile=is_compiled, max_perplexity_increase=TOLERANT)
        manifest = build(config, measure=teacher_forced_logits)
        assert verify(tmp_path / asked, digests=True) == manifest
        found[asked] = accuracy_of(manifest)
    assert {one.text for one in found.values()} == {BUNDLED.name}
    assert len({one.num_tokens for one in found.values()}) == 1
    assert found["int8"].reference_perplexity == found["int4"].reference_perplexity > 100
    assert 0 < found["int8"].mean_kl < found["int4"].mean_kl < 0.5
    if not is_compiled:
        assert found["int8"].mean_kl < found["fp8"].mean_kl < found["int4"].mean_kl
    assert 1 > found["int8"].greedy_agreement > found["int4"].greedy_agreement > 0.3
    assert abs(found["int8"].perplexity_increase) < 0.02
    assert sorted(os.listdir(tmp_path)) == sorted(["hf", *kinds])


def test_the_weights_are_those_of_an_unmeasured_build(checkpoint: Path, tmp_path: Path) -> None:
    measured = build(config_of(checkpoint, tmp_path / "a"), measure=teacher_forced_logits)
    skipped = build(config_of(checkpoint, tmp_path / "b", accuracy_check=False))
    assert skipped.accuracy is None
    assert skipped.files == measured.files
    assert build(config_of(checkpoint, tmp_path / "c"), measure=teacher_forced_logits) == measured


def test_progress_counts_what_is_compared(checkpoint: Path, tmp_path: Path) -> None:
    progress = Recorder()
    manifest = build(config_of(checkpoint, tmp_path / "engine"), progress, teacher_forced_logits)
    assert list(progress.stages) == ["checkpoint", "weights", "reference", "accuracy"]
    assert progress.stages["accuracy"] == (accuracy_of(manifest).num_tokens, "tokens")
    for name in ("weights", "reference", "accuracy"):
        assert progress.done[name] == progress.stages[name][0]
    assert progress.done["reference"] > 2 * progress.done["weights"]


def test_the_summary_tells_both_numbers(checkpoint: Path, tmp_path: Path) -> None:
    manifest = build(config_of(checkpoint, tmp_path / "engine"), measure=teacher_forced_logits)
    accuracy = accuracy_of(manifest)
    rows = dict(summary_rows(manifest))
    assert rows["perplexity"] == (
        f"{accuracy.perplexity:.2f}, unquantised {accuracy.reference_perplexity:.2f}: "
        f"{accuracy.perplexity_increase:+.2%} ({accuracy.num_tokens:,} tokens of tide_mill.txt)"
    )
    assert f"{accuracy.greedy_agreement:.1%}" in rows["agreement"]
    skipped = build(config_of(checkpoint, tmp_path / "skipped", accuracy_check=False))
    assert dict(summary_rows(skipped))["accuracy"] == "not measured"


def ruin(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    def ruined(name: str, values: torch.Tensor, bits: int) -> Codes:
        codes = quantize(name, values, bits)
        return dataclasses.replace(codes, scales=codes.scales * factor)

    monkeypatch.setattr(weight_module, "quantize", ruined)


@pytest.mark.parametrize("factor", [4.0, float("nan")])
def test_a_ruined_quantization_fails_and_leaves_nothing(
    factor: float, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruin(monkeypatch, factor)
    for asked, milder in (("int4", "; take int8 weights, allow more with"), ("int8", "txt; allow more with")):
        config = config_of(checkpoint, tmp_path / "new" / "engine", asked, max_perplexity_increase=TOLERANT)
        with pytest.raises(ConfigError, match=r"max_perplexity_increase is 0.3 \(30.00%\): ") as failure:
            build(config, measure=teacher_forced_logits)
        message = str(failure.value)
        assert f"{asked} weights raise perplexity by " in message
        assert milder in message
        assert message.endswith("--max-perplexity-increase, or skip this with --no-accuracy-check")
        assert "\n" not in message
        assert os.listdir(tmp_path) == ["hf"]


def test_a_failed_gate_leaves_the_old_engine(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(checkpoint, tmp_path / "engine", overwrite=True)
    before = build(config, measure=teacher_forced_logits)
    ruin(monkeypatch, 4.0)
    with pytest.raises(ConfigError, match="raise perplexity by"):
        build(config, measure=teacher_forced_logits)
    assert verify(tmp_path / "engine", digests=True) == before
    assert sorted(os.listdir(tmp_path)) == ["engine", "hf"]


@pytest.mark.parametrize("stage", ["weights", "reference", "accuracy"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("bug")])
def test_an_interrupted_measurement_leaves_nothing(
    stop: BaseException, stage: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(type(stop)):
        build(config_of(checkpoint, tmp_path / "new" / "engine"), Recorder(stage, stop), teacher_forced_logits)
    assert os.listdir(tmp_path) == ["hf"]


def test_the_limit_is_the_last_that_passes(checkpoint: Path, tmp_path: Path) -> None:
    """Logits that are uniform, then twice as good at nothing: the increase is worked out by hand."""

    def measure(engine: Path, windows: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        is_quantized = EngineManifest.load(engine).quantization is not None
        for window in windows:
            logits = torch.zeros(len(window) - 1, 320)
            if is_quantized:  # the token that came has half the weight of the others
                logits.scatter_(1, torch.tensor(window[1:])[:, None], float(torch.tensor(0.5).log()))
            yield logits

    exact = (319.5 / 0.5) / 320 - 1
    passed = build(config_of(checkpoint, tmp_path / "a", max_perplexity_increase=exact + 1e-5), measure=measure)
    assert accuracy_of(passed).perplexity_increase == pytest.approx(exact, abs=1e-5)
    with pytest.raises(ConfigError, match=r"raise perplexity by 99.69%, from 320.00 to 639.00 on tide_mill.txt"):
        build(config_of(checkpoint, tmp_path / "b", max_perplexity_increase=exact - 1e-5), measure=measure)


def test_a_model_that_is_broken_anyway_is_told_apart(checkpoint: Path, tmp_path: Path) -> None:
    def measure(engine: Path, windows: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        for window in windows:
            yield torch.full((len(window) - 1, 320), torch.nan)

    with pytest.raises(ConfigError, match=r"dtype is 'float32': the unquantised model has no finite perplexity"):
        build(config_of(checkpoint, tmp_path / "engine"), measure=measure)
    assert os.listdir(tmp_path) == ["hf"]


def test_options_that_contradict_are_named(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    output = tmp_path / "engine"
    for config, message in (
        (config_of(checkpoint, output), r"accuracy_check is on, but build\(\) was given no `measure`"),
        (config_of(checkpoint, output, None, accuracy_text=text), r"accuracy_text is .* but nothing is quantised"),
        (
            config_of(checkpoint, output, accuracy_text=text, accuracy_check=False),
            r"accuracy_text is .* but accuracy_check is off; leave it out",
        ),
    ):
        progress = Recorder()
        with pytest.raises(ConfigError, match=message):
            build(config, progress)
        assert not progress.stages  # before any work is done
    text.write_text("Too short.")
    with pytest.raises(ConfigError, match="give a text of"):
        build(config_of(checkpoint, output, accuracy_text=text), measure=teacher_forced_logits)
    assert not output.exists()


def test_a_text_of_ones_own_is_measured(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("the king is in the ring, singing. " * 60)
    config = config_of(checkpoint, tmp_path / "engine", accuracy_text=tmp_path / "mine.txt")
    accuracy = accuracy_of(build(config, measure=teacher_forced_logits))
    assert accuracy.text == "mine.txt"
    assert accuracy.num_tokens > 256
    assert str(tmp_path) not in (tmp_path / "engine" / "engine.json").read_text()


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_int8_keys_and_values_are_part_of_the_cost(
    is_compiled: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for kv_cache_dtype in ("float32", "int8"):
        config = config_of(
            checkpoint,
            tmp_path / kv_cache_dtype,
            compile=is_compiled,
            kv_cache_dtype=kv_cache_dtype,
        )
        found[kv_cache_dtype] = accuracy_of(build(config, measure=teacher_forced_logits))
    assert found["int8"].reference_perplexity == found["float32"].reference_perplexity
    assert found["int8"].mean_kl > found["float32"].mean_kl
    ruin(monkeypatch, 4.0)
    config = config_of(checkpoint, tmp_path / "ruined", kv_cache_dtype="int8", compile=is_compiled)
    with pytest.raises(
        ConfigError, match=r"int8 weights with int8 keys and values raise .*; leave --kv-cache-dtype out,"
    ):
        build(config, measure=teacher_forced_logits)


def test_an_unquantised_build_measures_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def measure(engine: Path, windows: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        raise AssertionError("there is nothing to measure")

    assert build(config_of(checkpoint, tmp_path / "engine", None), measure=measure).quantization is None


def test_int8_keys_and_values_alone_are_measured_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(checkpoint, tmp_path / "engine", None, kv_cache_dtype="int8")
    manifest = build(config, measure=teacher_forced_logits)
    assert manifest.quantization is None
    assert accuracy_of(manifest).mean_kl > 0
    assert dict(summary_rows(manifest))["perplexity"]
    ruined = config_of(checkpoint, tmp_path / "ruined", None, kv_cache_dtype="int8", max_perplexity_increase=0)
    monkeypatch.setattr(Accuracy, "perplexity_increase", property(lambda self: self.mean_kl))
    with pytest.raises(ConfigError, match=r": int8 keys and values raise .*; leave --kv-cache-dtype out, allow more"):
        build(ruined, measure=teacher_forced_logits)
    assert not (tmp_path / "ruined").exists()
