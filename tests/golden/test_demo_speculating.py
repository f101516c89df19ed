"""The demo checkpoint's greedy tokens against transformers', when tokens are guessed ahead by everybody who can."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.demo import demo_checkpoint
from support.scheduling import make_request
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DrafterKind, DType
from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.request import TokenDelta
from trierarch.python_backend.speculation.allotment import Allotment, BestRate, FixedLength

DRAFTERS = (DrafterKind.PROMPT_LOOKUP, DrafterKind.SUFFIX, DrafterKind.DRAFT_MODEL)
GOLDEN = Path(__file__).parent / "demo_greedy.json"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "drafted"
    build(
        BuildConfig(
            model=str(demo_checkpoint()),
            output=output,
            dtype=DType.FLOAT32,
            speculation=DRAFTERS,
            draft="int4",
            max_seq_len=1024,
        )
    )
    return output


@contextmanager
def opened(engine: Path, allotment: Allotment) -> Iterator[Executor]:
    executor = open_executor(engine, allotment)
    try:
        yield executor
    finally:
        executor.close()


# Five tokens guessed at every place are wrong at most of them: every other question has it tried 1280 times, twice.
@pytest.mark.parametrize(("allotment", "share"), [(BestRate(), 1), (FixedLength(5), 2)], ids=["best", "5"])
def test_greedy_answers_are_transformers_own(
    engine: Path, golden: list[dict[str, Any]], allotment: Allotment, share: int
) -> None:
    with opened(engine, allotment) as executor:
        check(executor, golden[::share])


def check(executor: Executor, golden: list[dict[str, Any]]) -> None:
    """All together, and again when the answers are in the history and the prompts in the prefix cache."""
    for attempt in range(2):
        deltas: queue.SimpleQueue[TokenDelta] = queue.SimpleQueue()
        for index, entry in enumerate(golden):
            fields = {"max_tokens": len(entry["output"]), "temperature": 0.0, "end_ids": ()}
            executor.submit(make_request(f"{attempt}/{index}", tuple(entry["prompt"]), **fields), deltas.put)
        answers: dict[str, list[int]] = {f"{attempt}/{index}": [] for index in range(len(golden))}
        num_left = len(golden)
        while num_left:
            delta = deltas.get(timeout=300)
            answers[delta.request_id] += delta.token_ids
            num_left -= delta.finish_reason is not None
        assert list(answers.values()) == [entry["output"] for entry in golden]
    speculation = executor.stats().speculation
    assert speculation is not None
    assert sum(drafter.num_accepted_tokens for drafter in speculation.drafters) > len(golden)
