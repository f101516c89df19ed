"""The demo checkpoint with its own Q4_1 and Q8_0 codes: the same numbers, so the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.demo import demo_checkpoint
from support.forward import prompt_logits
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DType, EngineManifest, Quantization, WeightType
from trierarch.python_backend.executors.torch.teacher_forcing import teacher_forced_logits

PROMPT = [1, 4093, 198, 1780, 314, 9838, 47, 2, 198, 1, 520, 9531, 198, 504, 260, 216, 49151, 0]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The engine with codes, and the one whose weights are float32."""
    directory = tmp_path_factory.mktemp("demo")
    for name, quantization in (("source", WeightType.SOURCE), ("plain", None)):
        config = BuildConfig(
            model=str(demo_checkpoint()), output=directory / name, dtype=DType.FLOAT32, quantization=quantization
        )
        build(config, measure=teacher_forced_logits)
    return directory / "source", directory / "plain"


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_kept_codes_give_the_logits_of_the_numbers_they_stand_for(
    engines: tuple[Path, Path], is_compiled: bool
) -> None:
    source, plain = engines
    manifest = EngineManifest.load(source)
    assert manifest.quantization is not None
    assert manifest.quantization == Quantization(weights=WeightType.SOURCE, num_int8=1, num_int4=120, num_unquantized=0)
    if is_compiled and manifest.kernels is None:
        pytest.skip("there is no compiler")
    logits = prompt_logits(source, PROMPT, [len(PROMPT)], is_compiled=is_compiled)
    exact = prompt_logits(plain, PROMPT, [len(PROMPT)])
    assert (logits - exact).abs().max() < 1e-4 * exact.abs().max()
    assert logits.argmax(1).equal(exact.argmax(1))
    assert exact.std(dim=1).min() > 0.1
    assert torch.isfinite(exact).all()


def test_kept_codes_cost_nothing(engines: tuple[Path, Path]) -> None:
    accuracy = EngineManifest.load(engines[0]).accuracy
    assert accuracy is not None
    assert abs(accuracy.perplexity_increase) < 1e-4
    assert accuracy.greedy_agreement > 0.999
    assert accuracy.mean_kl < 1e-6
    assert 10 < accuracy.reference_perplexity < 50  # of a model that knows English
