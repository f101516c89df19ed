"""A head guesses what its checkpoint says, wherever its sequences lie and however they got there, and changes no answer."""

from __future__ import annotations

import itertools
import logging
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import VOCAB_SIZE, random_checkpoint
from support.headed_engine import VOCABULARY, write_headed_engine
from support.heads import DenseHead, random_eagle3, random_mimo
from support.stepping import Stepper
from trierarch.builder.build import build
from trierarch.builder.compile import find_compiler
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import DrafterKind, EngineManifest
from trierarch.python_backend.executors.cpu.runner import CpuRunner
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.executors.head_drafter import HeadDrafter, open_head
from trierarch.python_backend.executors.runner import LeadRunner
from trierarch.python_backend.executors.torch.runner import TorchRunner
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan
from trierarch.python_backend.speculation.allotment import FixedLength
from trierarch.python_backend.speculation.drafter import Ask, Draft

CPU = torch.device("cpu")
KINDS = (DrafterKind.EAGLE3, DrafterKind.MTP)
MAX_DRAFT_TOKENS = 20
"""More than a block holds."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing by more, and on few cores torch's threads and the kernels' hold each other up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Rig:
    """An engine being served, and the head that follows it."""

    stepper: Stepper
    head: HeadDrafter[torch.Tensor]
    wanted: int
    """Tokens to guess in each step"""
    is_followed: bool = True
    """Whether what the head guesses is drafted; else what the stepper knows"""
    guesses: list[tuple[list[int], tuple[int, ...]]] = field(default_factory=list)
    """(known tokens, what was guessed to follow)"""

    @classmethod
    def open(cls, engine: Path, wanted: int = 3, **settings: Any) -> Rig:
        """`settings` are the stepper's."""
        manifest = EngineManifest.load(engine)
        draft = manifest.load_draft(engine)
        assert draft is not None
        assert draft.head is not None
        runner = open_runner(engine, manifest, draft.head.taps)
        head = open_head(engine / "draft", draft, draft.head, runner, MAX_DRAFT_TOKENS)
        rig = cls(Stepper.open(manifest, runner, **settings), head, wanted)
        rig.stepper.propose = rig.propose
        return rig

    def propose(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        """As the speculator would."""
        self.head.forget(plan.finished_sequence_ids)
        asks = [Ask(item.sequence, self.wanted) for item in plan.scheduled if item.samples]
        drafts = {ask.sequence.sequence_id: draft for ask, draft in zip(asks, self.head.propose(asks), strict=True)}
        self.guesses += [
            (list(ask.sequence.token_ids), drafts[ask.sequence.sequence_id].token_ids)
            for ask in asks
            if drafts[ask.sequence.sequence_id].token_ids
        ]
        if not self.is_followed:
            return self.stepper.known_drafts(plan)
        return {sequence_id: draft.token_ids for sequence_id, draft in drafts.items()}


def open_runner(engine: Path, manifest: EngineManifest, taps: tuple[int, ...] = ()) -> LeadRunner:
    if manifest.kernels is None:
        return TorchRunner(engine, manifest, CPU, taps=taps)
    return CpuRunner(engine, manifest, taps=taps)


@dataclass(frozen=True)
class Built:
    """An engine from checkpoints, and the plain word on what its head guesses."""

    engine: Path
    dense: DenseHead


@pytest.fixture(scope="module", params=itertools.product(KINDS, ("eager", "compiled")), ids=lambda one: "-".join(one))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    kind, way = request.param
    if way == "compiled" and find_compiler() is None:
        pytest.skip("no C++ compiler")
    directory = tmp_path_factory.mktemp("built")
    options: dict[str, Any] = {"dtype": "float32", "compile": way == "compiled", "kv_cache_bytes": 4 << 20}
    if kind is DrafterKind.EAGLE3:
        target, head = (
            random_checkpoint("llama", directory / "target"),
            random_eagle3(directory / "head", has_biases=True),
        )
        options["draft"] = str(head)
    else:
        target = head = random_mimo(directory / "mimo")
    options |= {"model": str(target), "output": directory / "engine", "speculation": (kind,), "max_seq_len": 200}
    build(BuildConfig.model_validate(options))
    return Built(directory / "engine", DenseHead(head, target))


def prompts(count: int, vocab_size: int = VOCAB_SIZE) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("rightness", ["right", "mixed", "wrong"])
@pytest.mark.parametrize("max_num_tokens", [7, 512])
def test_it_guesses_what_its_checkpoint_says(built: Built, max_num_tokens: int, rightness: str) -> None:
    """In chunks and batches, behind drafts of others that were accepted, or not, or some of them."""
    expected = plain(built.engine).generate(prompts(3), max_tokens=9)
    rig = Rig.open(built.engine, max_num_tokens=max_num_tokens)
    rig.is_followed = False
    rig.stepper.answers, rig.stepper.rightness = dict(enumerate(expected)), rightness
    assert rig.stepper.generate(prompts(3), max_tokens=9) == expected
    assert len(rig.guesses) >= (3 if rightness == "right" else 9)
    for known, guessed in rig.guesses:
        assert list(guessed) == built.dense.guess(known, rig.wanted)


def test_a_guess_may_be_longer_than_the_blocks_that_the_sequences_have(built: Built) -> None:
    rig = Rig.open(built.engine, wanted=MAX_DRAFT_TOKENS)
    rig.stepper.generate(prompts(2), max_tokens=3)
    assert len(rig.guesses) >= 2
    for known, guessed in rig.guesses:
        assert list(guessed) == built.dense.guess(known, MAX_DRAFT_TOKENS)


def test_the_executor_serves_it(built: Built) -> None:
    executor = open_executor(built.engine, FixedLength(2))
    deltas: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sampling = SamplingParams(max_tokens=8, temperature=0.0, end_ids=())
    prompt = tuple(prompts(1)[0])
    request = Request(request_id="a", prompt_token_ids=prompt, sampling=sampling, arrival_time=time.monotonic())
    executor.submit(request, deltas.put)
    drawn: list[int] = []
    while True:
        delta = deltas.get(timeout=60)
        drawn += delta.token_ids
        if delta.finish_reason is not None:
            break
    (drafter,) = executor.stats().speculation.drafters
    executor.close()
    assert drafter.kind is (DrafterKind.MTP if built.dense.is_mtp else DrafterKind.EAGLE3)
    assert drafter.num_draft_tokens > 0
    assert drawn == plain(built.engine).generate(prompts(1), max_tokens=8)[0]


def test_a_head_is_no_engine_to_serve(built: Built) -> None:
    with pytest.raises(
        EngineError, match=r"draft: it is a head, which only guesses for the engine it lies in; open that"
    ):
        open_executor(built.engine / "draft")


@pytest.fixture(params=itertools.product(KINDS, ("eager", "compiled")), ids=lambda one: "-".join(one))
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An engine whose head guesses at random."""
    kind, way = request.param
    if way == "compiled" and find_compiler() is None:
        pytest.skip("no C++ compiler")
    write_headed_engine(tmp_path, kind, way == "compiled", MAX_DRAFT_TOKENS)
    return tmp_path


def plain(engine: Path, **settings: Any) -> Stepper:
    manifest = EngineManifest.load(engine)
    return Stepper.open(manifest, open_runner(engine, manifest), **settings)


def serve(stepper: Stepper, **sampling: Any) -> dict[tuple[str, int], list[int]]:
    """Eight prompts, half of which begin alike, and once more when the first are known."""
    texts = prompts(4, VOCABULARY)
    texts += [[*texts[0], *texts[1], *text] for text in texts]
    for _ in range(2):
        for text in texts:
            stepper.add(text[:45], **sampling)
        stepper.finish()
    return stepper.streams()


SETTINGS: dict[str, dict[str, Any]] = {
    "batched": {},
    "alone": {"max_batch_size": 1},
    "chunked": {"max_num_tokens": 5},
    "without prefixes": {"enable_prefix_caching": False},
}


@pytest.mark.parametrize("sampling", [{}, {"n": 3, "temperature": 1.3, "top_k": 0, "seed": 3}], ids=["greedy", "n"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_guesses_change_no_answer(tiny: Path, settings: dict[str, Any], sampling: dict[str, Any]) -> None:
    expected = serve(plain(tiny), max_tokens=11, **sampling)
    rig = Rig.open(tiny, **settings)
    assert serve(rig.stepper, max_tokens=11, **sampling) == expected
    usages = rig.stepper.usages()
    assert sum(usage.num_accepted_draft_tokens for usage in usages) > len(expected), "it is right now and then"
    has_hits = any(usage.num_cached_tokens > 0 for usage in usages)
    assert has_hits or not settings.get("enable_prefix_caching", True)


def test_preemption_changes_no_answer(tiny: Path) -> None:
    expected = serve(plain(tiny), max_tokens=16)
    num_blocks = 80 // EngineManifest.load(tiny).kv_cache.block_size
    rig = Rig.open(tiny, num_blocks=num_blocks)
    assert serve(rig.stepper, max_tokens=16) == expected
    assert sum(usage.num_preemptions for usage in rig.stepper.usages()) > 0
    assert rig.guesses


def test_what_ended_is_forgotten(tiny: Path) -> None:
    rig = Rig.open(tiny)
    rig.stepper.generate(prompts(4, VOCABULARY))
    rig.stepper.step()
    assert not rig.head._places


def test_an_end_token_ends_the_guess(tiny: Path) -> None:
    rig = Rig.open(tiny, wanted=MAX_DRAFT_TOKENS)
    rig.is_followed = False
    rig.stepper.generate(prompts(4, VOCABULARY), end_ids=(2,), min_tokens=12)
    assert any(guessed[-1] == 2 for _, guessed in rig.guesses)
    assert all(len(guessed) == MAX_DRAFT_TOKENS or guessed[-1] == 2 for _, guessed in rig.guesses)
    assert all(2 not in guessed[:-1] for _, guessed in rig.guesses)


def test_time_is_foreseen_once_it_was_measured(tiny: Path) -> None:
    rig = Rig.open(tiny)
    (first, second) = (rig.head.seconds([], length) for length in (1, 4))
    assert first == second == 0.0
    rig.stepper.add(prompts(1, VOCABULARY)[0])
    rig.stepper.step()
    rig.stepper.step()
    (running,) = rig.stepper.scheduler.schedule().scheduled
    asks = [Ask(running.sequence, 4)]
    assert 0.0 < rig.head.seconds(asks, 1) < rig.head.seconds(asks, 4)


def test_following_that_fails_costs_guesses_and_nothing_else(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = plain(tiny).generate(prompts(4, VOCABULARY))
    rig = Rig.open(tiny)
    model = rig.head._model
    assert model is not None
    steps = itertools.count()
    follow = model.fuse

    def fail_at_first(*given: Any) -> torch.Tensor:
        if next(steps) < 5:
            raise RuntimeError("the head is ill")
        return follow(*given)

    monkeypatch.setattr(model, "fuse", fail_at_first)
    caplog.clear()
    assert rig.stepper.generate(prompts(4, VOCABULARY)) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"a drafter could not follow a step ({count} times so far)" for count in (1, 2, 4)
    ]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert "the head is ill" in caplog.text
    assert rig.guesses, "it goes on where it can"


def test_where_it_has_not_followed_it_guesses_nothing(tiny: Path) -> None:
    rig = Rig.open(tiny)
    rig.stepper.add(prompts(1, VOCABULARY)[0])
    rig.stepper.step()
    (running,) = rig.stepper.scheduler.schedule().scheduled
    asks = [Ask(running.sequence, 4)]
    assert len(rig.head.propose(asks)[0].token_ids) == 4
    running.sequence.token_ids.append(3)
    assert rig.head.propose(asks) == [Draft(())]
