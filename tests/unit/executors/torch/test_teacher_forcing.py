"""Logits of given tokens, window by window."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.checkpoints import random_model, save_checkpoint
from support.forward import CPU, prompt_logits
from trierarch.builder.accuracy import measure_accuracy
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import EngineError
from trierarch.builder.evaluation_text import EvaluationText
from trierarch.builder.manifest import DType, EngineManifest
from trierarch.builder.progress import NoProgress
from trierarch.python_backend.executors.torch.teacher_forcing import teacher_forced_logits

MODEL_SEED = 3


def windows(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(320, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="module", params=["eager", "compiled"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With windows of its own in some layers, and blocks that no window of ours fills."""
    directory = tmp_path_factory.mktemp("engine")
    save_checkpoint(random_model("qwen2", seed=MODEL_SEED), directory / "hf")
    config = BuildConfig(
        model=str(directory / "hf"),
        output=directory / "engine",
        dtype=DType.FLOAT32,
        compile=request.param == "compiled",
    )
    if build(config).kernels is None and config.compile:
        pytest.skip("there is no compiler")
    return directory / "engine"


def test_each_window_is_computed_as_if_it_were_alone(engine: Path) -> None:
    """In one step or in many, in other blocks, after windows that are longer or shorter."""
    is_compiled = EngineManifest.load(engine).kernels is not None
    asked = windows(130, 2, 65, 200, 17)
    chunks = list(teacher_forced_logits(engine, asked, CPU))
    assert [len(one) for one in chunks] == [64, 64, 1, 1, 64, 64, 64, 64, 7, 16]
    alone = [prompt_logits(engine, window, [1, len(window) - 1], is_compiled)[:-1] for window in asked]
    torch.testing.assert_close(torch.cat(chunks), torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert chunks[0].dtype is torch.float32


def test_perplexity_is_that_of_transformers(engine: Path) -> None:
    """Its own loss, of its own model, in float64."""
    asked = windows(200, 120, 3)
    model = random_model("qwen2", seed=MODEL_SEED)
    total = 0.0
    with torch.no_grad():
        for window in asked:
            ids = torch.tensor([window])
            total += model.double()(input_ids=ids, labels=ids, use_cache=False).loss.item() * (len(window) - 1)
    text = EvaluationText("random", tuple(map(tuple, asked)))
    logits = list(teacher_forced_logits(engine, asked))
    accuracy = measure_accuracy(text, logits, logits, NoProgress())
    expected = torch.tensor(total / text.num_tokens).exp().item()
    assert accuracy.perplexity == accuracy.reference_perplexity == pytest.approx(expected, rel=1e-4)


def test_a_foreign_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is not an engine"):
        next(teacher_forced_logits(tmp_path, windows(3)))
