from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.checkpoints import random_checkpoint
from trierarch.benchmarks.workers.protocol import Steering
from trierarch.benchmarks.workers.speculating import SpeculatingWorker, SteeredAllotment
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DType
from trierarch.python_backend.speculation.allotment import BestRate

CHANCES = [[0.9, 0.8, 0.1], [0.2]]


def test_it_follows_the_executors_own_policy_or_a_fixed_length() -> None:
    allotment = SteeredAllotment()

    def seconds(num_drafts: int) -> float:
        return 1.0 + 0.5 * num_drafts

    own = BestRate().allot(CHANCES, seconds, 2, 0.0)
    assert allotment.allot(CHANCES, seconds, 2, 0.0) == own
    allotment.follow(2)
    assert allotment.allot(CHANCES, seconds, 2, 0.0).counts == [2, 1]
    assert allotment.length(CHANCES, seconds, 2).counts == [2, 1]
    allotment.follow("adaptive")
    assert allotment.allot(CHANCES, seconds, 2, 0.0) == own


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpeculatingWorker]:
    folder = tmp_path_factory.mktemp("speculating")
    checkpoint = random_checkpoint("llama", folder / "checkpoint")
    config = BuildConfig(
        model=str(checkpoint), output=folder / "engine", dtype=DType.FLOAT32, kv_cache_bytes=1 << 20, compile=False
    )
    build(config)
    worker = SpeculatingWorker(folder / "engine")
    yield worker
    worker.close()


def test_a_real_engine_drafts_as_it_is_told_and_answers_the_same(worker: SpeculatingWorker) -> None:
    prompts = [[7, 8, 9] * 8, [5, 6] * 9]
    answers, drafted = [], []
    for speculation in (0, 1, 4, "adaptive"):
        worker.steer(Steering(speculation, str(speculation)))
        answers.append(worker.generate(prompts, 24))
        counters = worker.counters()
        drafted.append(counters["num_draft_tokens"])
        assert 0 <= counters["num_accepted_draft_tokens"] <= drafted[-1]

    assert answers == [answers[0]] * 4
    assert drafted[0] == 0 < drafted[1] < drafted[2]
