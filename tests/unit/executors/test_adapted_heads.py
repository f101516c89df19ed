"""Heads guess without adapters for a model that has them; its answers are those of the model alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.adapted_answers import GREEDY, SEEDED, answers
from support.headed_engine import VOCABULARY, take_head_away, write_headed_engine
from support.packed_adapters import write_random_packed
from trierarch.builder.compile import find_compiler
from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.request import SamplingParams
from trierarch.python_backend.speculation.allotment import FixedLength
from trierarch.python_backend.speculation.stats import SpeculationStats

KINDS = (DrafterKind.EAGLE3, DrafterKind.MTP)
NAMES = ("", "a", "b", "a", "c", "d", "")
"""Four adapters and the base model among them, and two slots."""
PROMPTS = ((3, 4, 5, 0, 1), (2, 4, 5, 0, 1, 3, 3, 2, 1, 0, 5), (3, 4, 5, 0, 2))
SAMPLINGS = {
    "greedy": replace(GREEDY, max_tokens=24),
    "seeded": SEEDED,
    "hot": replace(SEEDED, temperature=1.5, top_p=1.0, seed=3),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing by more, and on few cores torch's threads and the kernels' hold each other up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=itertools.product(KINDS, ("eager", "compiled")), ids=lambda one: "-".join(one))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An engine with a head, and adapters that change much of what it says."""
    kind, way = request.param
    if way == "compiled" and find_compiler() is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "shelf").mkdir()
    (tmp_path / "engine").mkdir()
    manifest = write_headed_engine(tmp_path / "engine", kind, way == "compiled", max_draft_tokens=3, max_adapters=2)
    for seed, name in enumerate("abcd"):
        write_random_packed(tmp_path / "shelf", name, manifest, seed=seed, strength=4.0, is_dora=name == "d")
    return tmp_path / "engine"


def open_adapted(engine: Path) -> Executor:
    return open_executor(engine, FixedLength(3), (engine.parent / "shelf",))


def ask(executor: Executor, sampling: SamplingParams, guesses: bool = True) -> list[list[int]]:
    return answers(executor, NAMES, sampling, guesses, PROMPTS)


def guessed(executor: Executor) -> SpeculationStats:
    stats = executor.stats().speculation
    assert stats is not None
    return stats


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_adapted_answers_do_not_depend_on_a_heads_guesses(engine: Path, sampling: SamplingParams) -> None:
    """Twice, since the second time prompts are found in the cache, the head's keys and values with them."""
    executor = open_adapted(engine)
    try:
        narrowed = ask(executor, sampling, guesses=False)
        drafted = [ask(executor, sampling) for _ in range(2)]
        (drafter,) = guessed(executor).drafters
        adapters = executor.stats().adapters
    finally:
        executor.close()
    take_head_away(engine)
    alone = open_adapted(engine)
    try:
        expected = ask(alone, sampling)
        assert alone.stats().speculation is None or not guessed(alone).drafters
    finally:
        alone.close()
    assert narrowed == expected
    assert drafted == [expected, expected]
    assert drafter.num_draft_tokens > drafter.num_accepted_tokens > 0, "it is right now and then"
    assert adapters is not None
    assert (adapters.max_adapters, adapters.num_loads) == (2, 4)
    by_name = {name: tuple(map(tuple, expected[3 * place : 3 * place + 3])) for place, name in enumerate(NAMES)}
    assert len(set(by_name.values())) == len(by_name), "each adapter says something of its own"


def test_a_head_follows_whichever_adapter_a_sequence_has(engine: Path) -> None:
    """Alone, each answers as among the others: the head's rows of one sequence take nothing of another's."""
    sampling = SAMPLINGS["greedy"]
    executor = open_adapted(engine)
    try:
        together = ask(executor, sampling)
        alone = [one for name in NAMES for one in answers(executor, [name], sampling, prompts=PROMPTS)]
        assert together == alone
    finally:
        executor.close()
    assert max(map(max, together)) < VOCABULARY
