"""What quantization cost, against arithmetic that is slow and obvious."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trierarch.builder.accuracy import measure_accuracy
from trierarch.builder.evaluation_text import EvaluationText
from trierarch.builder.manifest import Accuracy
from trierarch.builder.progress import NoProgress


def text_of(targets: Iterable[int]) -> EvaluationText:
    return EvaluationText("text", ((0, *targets),))


def measured(targets: list[int], reference: torch.Tensor, quantized: torch.Tensor, rows: int = 3) -> Accuracy:
    return measure_accuracy(text_of(targets), reference.split(rows), quantized.split(rows), NoProgress())


def random_logits(seed: int, num_tokens: int, vocab_size: int, size: float = 3.0) -> torch.Tensor:
    return size * torch.randn(num_tokens, vocab_size, generator=torch.Generator().manual_seed(seed))


def slow_log_probs(logits: list[float]) -> list[float]:
    highest = max(logits)
    total = math.fsum(math.exp(one - highest) for one in logits)
    return [one - highest - math.log(total) for one in logits]


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(2, 12), st.floats(0.01, 30), st.floats(0, 5))
def test_it_is_what_the_definitions_say(
    seed: int, num_tokens: int, vocab_size: int, size: float, distance: float
) -> None:
    reference = random_logits(seed, num_tokens, vocab_size, size)
    quantized = reference + random_logits(seed + 1, num_tokens, vocab_size, distance)
    targets = torch.randint(vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    accuracy = measured(targets, reference, quantized)
    losses, divergences, agreements = [[], []], [], []
    for target, expected, found in zip(targets, reference.tolist(), quantized.tolist(), strict=True):
        p, q = slow_log_probs(expected), slow_log_probs(found)
        losses[0].append(-p[target])
        losses[1].append(-q[target])
        divergences.append(math.fsum(math.exp(one) * (one - other) for one, other in zip(p, q, strict=True)))
        agreements.append(expected.index(max(expected)) == found.index(max(found)))
    assert accuracy.num_tokens == num_tokens
    assert accuracy.reference_perplexity == pytest.approx(math.exp(math.fsum(losses[0]) / num_tokens), rel=1e-5)
    assert accuracy.perplexity == pytest.approx(math.exp(math.fsum(losses[1]) / num_tokens), rel=1e-5)
    assert accuracy.mean_kl == pytest.approx(math.fsum(divergences) / num_tokens, rel=1e-5, abs=1e-12)
    assert accuracy.greedy_agreement == pytest.approx(sum(agreements) / num_tokens, rel=1e-5)
    assert accuracy.mean_kl >= 0


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(-100, 100))
def test_a_model_and_itself_do_not_differ(seed: int, shift: float) -> None:
    """Nor where all logits are shifted, which changes no probability."""
    logits = random_logits(seed, 20, 50)
    same = measured(list(range(20)), logits, logits.clone())
    assert (same.perplexity_increase, same.greedy_agreement, same.mean_kl) == (0, 1, 0)
    shifted = measured(list(range(20)), logits.double(), logits.double() + shift)
    assert shifted.perplexity_increase == pytest.approx(0, abs=2e-6)
    assert 0 <= shifted.mean_kl < 1e-12


def test_a_model_that_knows_nothing_has_the_vocabulary_s_size() -> None:
    logits = random_logits(0, 6, 321)
    accuracy = measured([5, 0, 320, 7, 7, 1], torch.full((6, 321), -4.0), logits)
    assert accuracy.reference_perplexity == 321
    certain = torch.nn.functional.one_hot(torch.tensor([5, 0, 320, 7, 7, 1]), 321) * 1000.0
    assert measured([5, 0, 320, 7, 7, 1], logits, certain).perplexity == 1


def test_chunks_do_not_matter() -> None:
    reference, quantized = random_logits(1, 130, 40), random_logits(2, 130, 40)
    targets = [token % 40 for token in range(130)]
    assert {measured(targets, reference, quantized, rows) for rows in (1, 7, 64, 130)} == {
        measured(targets, reference, quantized)
    }


def test_many_tokens_are_summed_without_loss() -> None:
    """100,000 equal losses: float32 sums would drift in the fifth digit."""
    logits = torch.tensor([[0.0, 1.0, 3.0]]).expand(100_000, 3)
    accuracy = measured([0] * 100_000, logits, logits, rows=1000)
    assert accuracy.perplexity == pytest.approx(math.exp(-slow_log_probs([0, 1, 3])[0]), rel=1e-5)


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e30])
def test_a_broken_model_is_infinitely_bad(broken: float) -> None:
    logits = random_logits(3, 4, 10)
    ruined = logits.clone()
    ruined[2, 9] = broken
    accuracy = measured([1, 2, 3, 4], logits, ruined)
    assert accuracy.perplexity == accuracy.perplexity_increase == math.inf
    assert accuracy.mean_kl > 1e20
    assert accuracy.reference_perplexity < 1e6


def test_both_models_must_speak_of_every_token() -> None:
    logits = random_logits(4, 6, 10)
    with pytest.raises(ValueError, match="shorter"):
        measure_accuracy(text_of(range(6)), logits.split(3), logits[:3].split(3), NoProgress())
    with pytest.raises(AssertionError):
        measure_accuracy(text_of(range(7)), logits.split(3), logits.split(3), NoProgress())
