"""The processes that guides run in: what they say, and what becomes of everybody when one takes too long or dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import psutil
import pytest

from support.drafting import make_sequence
from support.eventually import eventually
from support.guiding import allowed, readable_engine
from support.tokenizers import small_tokenizer
from trierarch.python_backend.errors import InvalidRequest, ServingError
from trierarch.python_backend.guides.compiler import GuideCompiler
from trierarch.python_backend.guides.grammar import Grammars
from trierarch.python_backend.guides.masking import GuidedStep, Masking
from trierarch.python_backend.guides.process import GuideProcess
from trierarch.python_backend.guides.protocol import Vocabulary
from trierarch.python_backend.request import Guide, GuideKind
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence as Stream

TOKENIZER = small_tokenizer("byte_level")
(END,) = TOKENIZER.encode("<|im_end|>")
DIGITS = Guide(GuideKind.REGEX, "[0-9]{3}")
RULES = [f'r{i} ::= r{i + 1} r{i + 1} | "a"' for i in range(3000)]
ENDLESS = Guide(GuideKind.EBNF, "\n".join(["root ::= r0", *RULES, 'r3000 ::= "b"']))
"""It would compile for minutes."""
AMBIGUOUS = Guide(GuideKind.EBNF, "root ::= root root | [a-z ]")
"""Each token takes longer than the one before: the n-th, in proportion to n squared."""
FOREVER_SECONDS: Final = 3600.0
"""For what must be done, however slow the host is."""
FOR_MINUTES: Final = 1500
"""Tokens of it that no host follows within the seconds that a test waits; 300 took a fast one half a second."""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    engine = tmp_path_factory.mktemp("engine")
    manifest = readable_engine(engine)
    return Vocabulary(str(engine), manifest.architecture.vocab_size, 1 << 30)


@pytest.fixture
def process(vocabulary: Vocabulary) -> Iterator[GuideProcess]:
    process = GuideProcess(vocabulary)
    assert process.is_up(60)
    yield process
    process.close()


def test_a_process_says_what_is_wrong_with_a_guide(process: GuideProcess) -> None:
    assert process.compile(DIGITS, 60) is None
    objection = process.compile(Guide(GuideKind.REGEX, "(?=a)b"), 60)
    assert objection == "Regex parsing error at position 3: Lookahead is not supported yet."


def test_a_guide_that_takes_too_long_can_be_given_up(process: GuideProcess) -> None:
    with pytest.raises(TimeoutError):
        process.compile(ENDLESS, 0.5)


def test_memory_is_bounded(vocabulary: Vocabulary) -> None:
    small = GuideProcess(Vocabulary(vocabulary.engine, vocabulary.vocab_size, 128 << 20))
    try:
        deep = Guide(GuideKind.JSON_SCHEMA, '{"type":"array","items":' * 900 + "{}" + "}" * 900)
        with suppress(EOFError):  # it may be the end of the process
            assert small.compile(deep, 60) is not None
    finally:
        small.close()


@pytest.fixture
def compiler(vocabulary: Vocabulary) -> Iterator[GuideCompiler]:
    compiler = GuideCompiler(vocabulary, User(), lambda: None, seconds=FOREVER_SECONDS)
    yield compiler
    compiler.close()


class User:
    """Where guides would be needed."""

    def __init__(self) -> None:
        self.prepared: list[Guide] = []

    def start(self) -> None:
        pass

    def prepare(self, guide: Guide, timeout: float) -> None:
        self.prepared.append(guide)


def test_verdicts(vocabulary: Vocabulary) -> None:
    user, told = User(), threading.Semaphore(0)
    compiler = GuideCompiler(vocabulary, user, told.release, seconds=FOREVER_SECONDS)

    def want(*guides: Guide) -> None:
        for guide in guides:
            compiler.want(guide)
        for _ in set(guides):
            assert told.acquire(timeout=60)

    try:
        bad = Guide(GuideKind.REGEX, "(")
        want(DIGITS, bad, DIGITS)
        compiler._seconds = 0.5  # for what takes minutes, and for nothing that a slow host would be late with
        want(ENDLESS)
        compiler._seconds = FOREVER_SECONDS
        assert not compiler.is_ready(AMBIGUOUS)
        want(AMBIGUOUS)
        assert [compiler.is_ready(guide) for guide in (DIGITS, bad, ENDLESS, AMBIGUOUS)] == [True, False, False, True]
        assert user.prepared == [DIGITS, AMBIGUOUS]
        assert compiler.num_refusals == 2
        assert compiler.error(DIGITS) is None
        assert "it takes longer than 0.5 s to compile" in str(compiler.error(ENDLESS))
        refusal = InvalidRequest("guide", "", "takes too long")
        compiler.refuse(AMBIGUOUS, refusal)
        assert compiler.error(AMBIGUOUS) is refusal
        assert not compiler.is_ready(AMBIGUOUS)
    finally:
        compiler.close()
    compiler.want(Guide(GuideKind.JSON))  # too late, and no harm


def test_a_compiler_closes_while_it_compiles(compiler: GuideCompiler) -> None:
    compiler.want(ENDLESS)
    eventually(lambda: bool(_workers()), "a process runs")
    compiler.close()
    assert not _workers()


def _workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            found += [child] * ("guides.worker" in " ".join(child.cmdline()))
    return found


class Steps:
    """Masks of the same sequences, step after step."""

    def __init__(self, masking: Masking) -> None:
        self.masking = masking
        self.refused: set[int] = set()

    def until(self, holds: Callable[[GuidedStep], bool], items: Sequence[ScheduledSequence]) -> GuidedStep:
        """Ask again and again, as the loop does."""
        steps: list[GuidedStep] = []

        def once() -> bool:
            step = self.masking.masks(Plan(tuple(items)))
            assert step is not None
            steps.append(step)
            self.refused |= step.refused.keys()
            return holds(steps[-1])

        eventually(once, "the masks that are wanted")
        return steps[-1]


@pytest.fixture
def refused() -> list[tuple[Guide, ServingError]]:
    return []


@pytest.fixture
def steps(vocabulary: Vocabulary, refused: list[tuple[Guide, ServingError]]) -> Iterator[Steps]:
    masking = Masking(vocabulary, (END,), lambda guide, error: refused.append((guide, error)), seconds=FOREVER_SECONDS)
    yield Steps(masking)
    masking.close()


def share(sequence: Stream, draft: tuple[int, ...] = ()) -> ScheduledSequence:
    return ScheduledSequence(sequence, sequence.num_tokens - 1, 1, draft, samples=True)


def guided(sequence_id: int, guide: Guide | None, output: str = "") -> Stream:
    return make_sequence(sequence_id, (40,), TOKENIZER.encode(output), guide=guide)


def tokens(mask: bytes) -> list[bytes]:
    return [TOKENIZER.bytes.of(token) for token in allowed(mask, TOKENIZER.vocab_size)]


def test_drafts_are_masked_as_far_as_they_stay_in_the_grammar(steps: Steps) -> None:
    sequence = guided(1, Guide(GuideKind.REGEX, "[0-9]{3}x?"), "1")
    two, three, the = (TOKENIZER.encode(text)[0] for text in ("2", "3", "the"))
    for draft, num_masks in (((), 1), ((the,), 1), ((two, the, three), 2), ((two, three), 3), ((two, END), 2)):
        masks = steps.until(lambda step: bool(step.masks), [share(sequence, draft)]).masks[1]
        assert len(masks) == num_masks
        assert tokens(masks[0]) == [b"%d" % digit for digit in range(10)]
    masks = steps.until(lambda step: bool(step.masks), [share(sequence, (two, three))]).masks[1]
    assert set(allowed(masks[2], TOKENIZER.vocab_size)) == {END, TOKENIZER.encode("x")[0]}


def test_a_draft_that_completes_the_output_is_drawn_where_it_stands(steps: Steps) -> None:
    sequence = guided(1, DIGITS, "1")
    draft = tuple(TOKENIZER.encode("2")) + tuple(TOKENIZER.encode("3")) + (END,)
    assert len(steps.until(lambda step: bool(step.masks), [share(sequence, draft)]).masks[1]) == 2
    sequence.token_ids += draft[:2]
    assert steps.until(lambda step: bool(step.over), [share(sequence)]).over == [1]


def test_unguided_sequences_ask_nobody(steps: Steps) -> None:
    assert steps.masking.masks(Plan((share(guided(1, None)),))) is None
    assert not _workers()


def test_a_sequence_that_comes_back_is_followed_anew(steps: Steps) -> None:
    sequence = guided(1, DIGITS, "12")
    before = steps.until(lambda step: bool(step.masks), [share(sequence)]).masks
    steps.masking.masks(Plan((), finished_sequence_ids=(1,)))
    assert steps.until(lambda step: bool(step.masks), [share(sequence)]).masks == before


def test_a_slow_grammar_ends_alone_and_is_not_tried_again(
    steps: Steps, refused: list[tuple[Guide, ServingError]], vocabulary: Vocabulary
) -> None:
    slow, quick, plain = guided(1, AMBIGUOUS), guided(2, DIGITS, "1"), guided(3, None)
    twin = guided(4, AMBIGUOUS, "a")
    letter, two = TOKENIZER.encode("a")[0], TOKENIZER.encode("2")[0]
    steps.until(lambda step: step.masks.keys() == {1, 2}, [share(slow), share(quick), share(plain)])
    slow.token_ids += [letter] * FOR_MINUTES
    steps.masking._seconds = 0.5
    step = steps.until(lambda step: bool(step.refused), [share(slow), share(quick), share(plain), share(twin)])
    assert isinstance(step.refused[1], InvalidRequest)
    assert step.refused.keys() == {1, 4}
    assert "takes longer than 0.5 s" in str(step.refused[1])
    assert refused == [(AMBIGUOUS, step.refused[1])]
    steps.masking._seconds = FOREVER_SECONDS
    quick.token_ids.append(two)
    masks = steps.until(lambda step: bool(step.masks), [share(quick), share(plain)]).masks
    assert tokens(masks[2][0]) == [b"%d" % digit for digit in range(10)]
    assert len(_workers()) == 1


def test_a_slow_grammar_whose_sequence_has_gone_holds_nobody_up(steps: Steps) -> None:
    slow, quick = guided(1, AMBIGUOUS), guided(2, DIGITS, "1")
    steps.until(lambda step: step.masks.keys() == {1, 2}, [share(slow), share(quick)])
    slow.token_ids += [TOKENIZER.encode("a")[0]] * FOR_MINUTES
    (worker,) = _workers()
    step = steps.masking.masks(Plan((share(slow), share(quick))))
    assert step is not None
    assert 1 not in step.masks
    steps.masking.masks(Plan((), finished_sequence_ids=(1,)))
    assert not worker.is_running()
    assert steps.until(lambda step: bool(step.masks), [share(quick)]).masks.keys() == {2}


def test_what_was_said_survives_the_process(steps: Steps) -> None:
    sequences = [guided(number, DIGITS, "12"[:number]) for number in (1, 2)]
    items = [share(sequence) for sequence in sequences]
    before = steps.until(lambda step: len(step.masks) == 2, items).masks
    for worker in _workers():
        worker.kill()
        worker.wait()
    assert steps.until(lambda step: len(step.masks) == 2, items).masks == before
    assert not steps.refused


def test_masks_are_those_of_the_grammar(steps: Steps, vocabulary: Vocabulary) -> None:
    """Through the process as without it."""
    text = [b"" if i in TOKENIZER.special_ids else TOKENIZER.bytes.of(i) for i in range(vocabulary.vocab_size)]
    matcher = Grammars(text).match(GuideKind.JSON, "", (END,))
    sequence = guided(1, Guide(GuideKind.JSON))
    for token in TOKENIZER.encode('{"the":[1,'):
        (mask,) = steps.until(lambda step: bool(step.masks), [share(sequence)]).masks[1]
        assert mask == matcher.mask()
        sequence.token_ids.append(token)
        assert matcher.accept(token)
