"""Beam searches through a real loop and scheduler, over a runner whose log-probs anybody can compute."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from support.eventually import eventually
from support.random_engine import tiny_architecture, tiny_manifest
from support.tokenizers import small_tokenizer
from trierarch.python_backend.beams.params import BeamParams
from trierarch.python_backend.beams.search import BeamSearch
from trierarch.python_backend.errors import (
    Cancelled,
    DeadlineExceeded,
    ExecutorFailed,
    InvalidRequest,
    Overloaded,
    ServingError,
    ShuttingDown,
)
from trierarch.python_backend.executors.fake import FakeRunner
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import FinishReason, SamplingParams, TokenLogprob
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import Plan, SequenceOutput, StepOutput
from trierarch.python_backend.scheduling.scheduler import Scheduler
from trierarch.python_backend.text.generator import TextDelta, TextGenerator, TextRequest

TOKENIZER = small_tokenizer("byte_level")
VOCAB = 97
BLOCK_SIZE = 4
END = 3
BEAMS = BeamParams(width=3, length_penalty=1.0)


def logprobs_after(context: Sequence[int]) -> list[tuple[int, float]]:
    """Every token and its log-prob, the likeliest first; what came before turns the order round."""
    seed = sum((place + 1) * token for place, token in enumerate(context))
    weights = [((token * 31 + seed * 17) % VOCAB + 1) ** 2 for token in range(VOCAB)]
    total = math.log(sum(weights))
    return sorted(((token, math.log(weight) - total) for token, weight in enumerate(weights)), key=lambda one: -one[1])


class BeamRunner(FakeRunner):
    """Lists the likeliest tokens. Waits at a gate before each step; fails for poisoned requests."""

    def __init__(self) -> None:
        super().__init__(num_blocks=64, block_size=BLOCK_SIZE, vocab_size=VOCAB)
        self.gate = threading.Semaphore(0)
        self.is_gated = False
        self.poison: set[str] = set()
        self.num_computed = 0

    def run(self, plan: Plan) -> StepOutput:
        if self.is_gated:
            assert self.gate.acquire(timeout=60)
        self.num_computed += sum(item.num_tokens for item in plan.scheduled)
        outputs = dict(super().run(plan).outputs)
        for item in plan.scheduled:
            request = item.sequence.request
            if request.request_id in self.poison:
                raise RuntimeError("poisoned")
            if item.samples:
                top = logprobs_after(item.sequence.token_ids)[: request.sampling.logprobs]
                outputs[item.sequence.sequence_id] = SequenceOutput(
                    (top[0][0],), (TokenLogprob(*top[0], top=tuple(top)),)
                )
        return StepOutput(outputs)


class World:
    """The text layer over a loop of its own."""

    def __init__(self, max_queue_size: int = 8, has_prefixes: bool = True) -> None:
        self.runner = BeamRunner()
        config = SchedulerConfig(max_batch_size=4, max_seq_len=64, max_num_tokens=16, max_queue_size=max_queue_size)
        self.scheduler = Scheduler(config, KVCacheManager(self.runner.num_blocks, BLOCK_SIZE, has_prefixes), (END,))
        self.executor = StepExecutor(self.scheduler, self.runner, VOCAB)
        manifest = tiny_manifest(tiny_architecture(vocab_size=VOCAB))
        manifest = manifest.model_copy(update={"tokens": manifest.tokens.model_copy(update={"eos": (END,)})})
        self.generator = TextGenerator(self.executor, TOKENIZER, None, manifest)
        self.deltas: queue.SimpleQueue[TextDelta] = queue.SimpleQueue()

    def ask(self, request_id: str = "r", prompt: Any = (5, 6, 7, 8, 9), **fields: Any) -> None:
        sampling = {name: fields.pop(name) for name in list(fields) if name not in TextRequest.__dataclass_fields__}
        params = SamplingParams(**{"max_tokens": 9, "n": 3, **sampling})
        request = TextRequest(request_id=request_id, prompt=prompt, sampling=params, **{"beams": BEAMS, **fields})
        self.generator.submit(request, self.deltas.put)

    def answers(self, number: int = 3) -> list[TextDelta]:
        return [self.deltas.get(timeout=60) for _ in range(number)]

    def error(self, number: int = 3) -> ServingError:
        """What all the answers end with."""
        answers = self.answers(number)
        assert [delta.index for delta in answers] == list(range(number))
        assert all(delta.finish_reason is not None and delta.text == "" for delta in answers)
        (error,) = {delta.error for delta in answers}
        assert error is not None
        return error

    def close(self) -> None:
        self.runner.is_gated = False
        self.runner.gate.release(1000)
        eventually(lambda: self.executor.stats().num_active_requests == 0, "an idle executor")
        assert self.executor.stats().used_blocks == 0
        assert self.generator.drain(60)
        self.scheduler.check_integrity()
        self.executor.close()
        self.generator.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def searched(prompt: tuple[int, ...], params: BeamParams = BEAMS, **sampling: Any) -> list[tuple[int, ...]]:
    """The slow way: the same search, fed by hand."""
    search = BeamSearch(params, SamplingParams(**{"max_tokens": 9, **sampling}), frozenset({END}), prompt)
    while not search.is_over:
        tops = [tuple(logprobs_after([*prompt, *beam.token_ids])) for beam in search.beams]
        search.advance([TokenLogprob(*top[0], top=top[: search.num_candidates]) for top in tops])
    return [beam.token_ids for beam in search.finished]


@pytest.mark.parametrize("has_prefixes", [True, False])
def test_it_finds_what_the_search_finds(has_prefixes: bool) -> None:
    world = World(has_prefixes=has_prefixes)
    for prompt in ((5,), (5, 6, 7, 8), (9, 8, 7, 6, 5, 4, 3, 2, 1)):
        world.ask(prompt=prompt, logprobs=2)
        answers = world.answers()
        assert [delta.token_ids for delta in answers] == searched(prompt)
        assert [delta.index for delta in answers] == [0, 1, 2]
        for delta in answers:
            assert delta.text == TOKENIZER.decode(delta.token_ids)
            assert delta.usage is not None
            assert delta.usage.num_prompt_tokens == len(prompt)
            assert delta.usage.num_output_tokens == len(delta.token_ids)
            times = delta.usage
            assert times.arrival_ns < times.first_scheduled_ns < times.first_token_ns < times.last_token_ns
            assert delta.logprobs is not None
            assert [len(item.top) for item in delta.logprobs] == [2] * len(delta.token_ids)
    world.close()


def test_keys_and_values_are_shared_through_the_prefix_cache() -> None:
    computed = {}
    for has_prefixes in (True, False):
        world = World(has_prefixes=has_prefixes)
        world.ask(prompt=tuple(range(10, 42)))
        world.answers()
        computed[has_prefixes] = world.runner.num_computed
        world.close()
    # Each step computes no more than its beams' last, unfinished blocks.
    assert computed[True] <= 32 + 3 * BLOCK_SIZE * 9
    assert computed[False] > 3 * 32 * 8


def test_the_best_are_sent_and_no_more(world: World) -> None:
    world.ask(n=1)
    (best,) = world.answers(1)
    assert best.token_ids == searched((5, 6, 7, 8, 9))[0]
    with pytest.raises(InvalidRequest, match=r"n is 4: must be at most beam_width \(3\)"):
        world.ask(n=4)


def test_stop_strings_end_beams(world: World) -> None:
    plain = searched((5, 6, 7, 8, 9), end_ids=())
    token = plain[0][2]
    stop = TOKENIZER.decode((token,))
    assert stop
    world.ask(stop=(stop,), end_ids=())
    answers = world.answers()
    stopped = [delta for delta in answers if delta.finish_reason is FinishReason.STOP]
    assert stopped
    for delta in stopped:
        assert (delta.stop_reason, stop in delta.text) == (stop, False)
        assert stop in TOKENIZER.decode(delta.token_ids)
        assert stop not in TOKENIZER.decode(delta.token_ids[:-1])


def test_a_full_queue_refuses_the_first_step_alone() -> None:
    world = World(max_queue_size=1)
    world.runner.is_gated = True
    world.ask("first")
    world.runner.gate.release()  # its first token; then three steps at once, in a queue of one
    eventually(lambda: world.executor.stats().num_active_requests == 3, "three beams")
    with pytest.raises(Overloaded):
        world.ask("second")
    world.runner.is_gated = False
    world.runner.gate.release(100)
    assert [delta.token_ids for delta in world.answers()] == searched((5, 6, 7, 8, 9))
    world.close()


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_aborted_in_any_step_it_ends_cancelled_and_holds_nothing(world: World, num_steps: int) -> None:
    world.runner.is_gated = True
    world.ask()
    for _ in range(num_steps):
        world.runner.gate.release()
    eventually(lambda: world.runner.num_steps == num_steps, f"{num_steps} steps")
    world.generator.abort("r")
    world.runner.gate.release()
    assert isinstance(world.error(), Cancelled)
    world.generator.abort("r")  # nothing happens


def test_wherever_an_abort_meets_it_all_of_it_ends_alike(world: World) -> None:
    for number in range(30):
        before = world.runner.num_steps
        world.ask(str(number), max_tokens=50, end_ids=())
        eventually(lambda before=before, more=number: world.runner.num_steps >= before + more % 5, "some steps")
        world.generator.abort(str(number))
        errors = {type(delta.error) for delta in world.answers()}
        assert errors in ({Cancelled}, {type(None)})


def test_a_deadline_ends_all_of_it(world: World) -> None:
    world.runner.is_gated = True
    world.ask(timeout=0.2)
    world.runner.gate.release()
    started = time.monotonic()
    eventually(lambda: time.monotonic() > started + 0.2, "the deadline")
    world.runner.gate.release(10)
    assert isinstance(world.error(), DeadlineExceeded)


def test_a_step_that_fails_ends_this_search_alone(world: World) -> None:
    world.runner.poison = {"r/2"}
    world.ask("r")
    world.ask("other")
    answers: dict[str, list[TextDelta]] = {"r": [], "other": []}
    for delta in world.answers(6):
        answers[delta.request_id].append(delta)
    assert all(isinstance(delta.error, ExecutorFailed) for delta in answers["r"])
    assert [delta.token_ids for delta in answers["other"]] == searched((5, 6, 7, 8, 9))


def test_draining_waits_for_searches_and_takes_no_more() -> None:
    world = World()
    world.runner.is_gated = True
    world.ask(max_tokens=30, end_ids=())
    outcome: list[bool] = []
    drain = threading.Thread(target=lambda: outcome.append(world.generator.drain(60)))
    drain.start()

    def refuses() -> bool:
        try:
            world.ask("late")
        except ShuttingDown:
            return True
        except InvalidRequest:  # the one before is still there
            return False
        return False

    eventually(refuses, "no more searches")
    with pytest.raises(ShuttingDown):
        world.ask("plain", beams=None)
    world.runner.is_gated = False
    world.runner.gate.release(100)
    drain.join(60)
    assert outcome == [True]
    assert all(delta.error is None for delta in world.answers())
    world.executor.close()
    world.generator.close()


def test_closing_amid_a_search_ends_it() -> None:
    world = World()
    world.runner.is_gated = True
    world.ask()
    closing = threading.Thread(target=world.executor.close)
    closing.start()
    eventually(lambda: world.executor._is_closing, "word of the end")
    world.runner.gate.release(100)
    closing.join(60)
    world.generator.close()
    assert isinstance(world.error(), Cancelled | ShuttingDown)


def test_a_sink_that_fails_ends_nothing_else(world: World) -> None:
    def fail(_: TextDelta) -> None:
        raise RuntimeError("gone")

    sampling = SamplingParams(max_tokens=3, n=2)
    world.generator.submit(TextRequest(request_id="gone", prompt=(5,), sampling=sampling, beams=BEAMS), fail)
    world.ask()
    assert [delta.token_ids for delta in world.answers()] == searched((5, 6, 7, 8, 9))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": 60}, "max_tokens is 60: must be at most 59 after 5 prompt tokens"),
        ({"prompt": (5,) * 70}, "number of prompt tokens is 70"),
        ({"return_context_logits": True}, "return_context_logits is 'given': does not go with beam_width 3"),
        ({"return_generation_logits": True}, "return_generation_logits is 'given'"),
        (
            {"stop_words": tuple((token,) for token in range(10, 28))},
            "beam_width is 3: with .* ask for fewer beams, or name fewer bad",
        ),
        ({"stop": ("",)}, "stop is ''"),
        ({"end_ids": (VOCAB,)}, "end_ids is 97: token ids of this engine"),
        ({"stop_words": ((1, VOCAB),)}, "stop_words is 97"),
        ({"bad_words": (), "prompt": (VOCAB,)}, "prompt_token_ids is 97"),
    ],
)
def test_what_does_not_go_with_beams_is_refused_at_once(world: World, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        world.ask(**fields)
    world.ask()  # the id is free again
    world.answers()
