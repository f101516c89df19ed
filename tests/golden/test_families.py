"""Every family's logits against transformers', on a small random checkpoint that transformers itself saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.checkpoints import FAMILIES, VOCAB_SIZE, random_model, save_checkpoint
from support.forward import prompt_logits
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DType, EngineManifest

WINDOW = 16  # of the families that have one
PROMPT_LENGTH = 100
assert PROMPT_LENGTH > 2 * WINDOW

CHUNKS = {"whole": [100], "chunked": [37, 1, 1, 16, 1, 44], "by one": [1] * 100}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An engine in float32, and transformers' logits of `prompt()`."""
    model = random_model(request.param, seed=1)
    directory = tmp_path_factory.mktemp(request.param)
    save_checkpoint(model, directory / "checkpoint")
    build(BuildConfig(model=str(directory / "checkpoint"), output=directory / "engine", dtype=DType.FLOAT32))
    with torch.inference_mode():
        reference = model(torch.tensor([prompt()])).logits[0]
    return directory / "engine", reference


def prompt() -> list[int]:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(VOCAB_SIZE, (PROMPT_LENGTH,), generator=generator).tolist()


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_logits_equal_transformers(family: tuple[Path, torch.Tensor], chunks: list[int]) -> None:
    engine, reference = family
    assert_equal(prompt_logits(engine, prompt(), chunks), reference)
    if EngineManifest.load(engine).kernels is not None:
        assert_equal(prompt_logits(engine, prompt(), chunks, is_compiled=True), reference)


def assert_equal(logits: torch.Tensor, reference: torch.Tensor) -> None:
    assert relative_errors(logits, reference).max() < 1e-4
    # A uniform answer would be near anything: the reference must have something to say.
    assert reference.std(dim=1).min() > 0.1


def test_every_family_without_experts_is_compiled(family: tuple[Path, torch.Tensor]) -> None:
    manifest = EngineManifest.load(family[0])
    assert (manifest.kernels is not None) == (manifest.architecture.moe is None)


# Not those with experts: where rounding sends a token to another expert, one error is as good as another.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("mixtral", "qwen3-moe")])
def test_bfloat16_rounds_no_worse_than_transformers(name: str, tmp_path: Path) -> None:
    model = random_model(name, seed=1)
    save_checkpoint(model, tmp_path / "checkpoint")
    build(BuildConfig(model=str(tmp_path / "checkpoint"), output=tmp_path / "engine", dtype=DType.BFLOAT16))
    with torch.inference_mode():
        exact = model(torch.tensor([prompt()])).logits[0]
        theirs = model.to(torch.bfloat16)(torch.tensor([prompt()])).logits[0].float()
    ours = prompt_logits(tmp_path / "engine", prompt(), [37, 1, 62])
    assert relative_errors(ours, exact).median() < 1.25 * relative_errors(theirs, exact).median()


def relative_errors(logits: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Of each position: (n)."""
    return (logits - exact).norm(dim=1) / exact.norm(dim=1)
