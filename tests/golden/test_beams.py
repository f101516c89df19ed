"""Beam search against transformers', on a small random model in float32: the same tokens, the same scores."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from support.adapted_engine import adapted_engine
from support.adapters import load_adapter
from support.checkpoints import BOS, EOS, PAD, random_model, save_checkpoint, small_tokenizer
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DType, EngineManifest
from trierarch.python_backend.beams.params import BeamParams, EarlyStopping
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.request import FinishReason, Guide, GuideKind, SamplingParams
from trierarch.python_backend.text.generator import TextDelta, TextGenerator, TextRequest
from trierarch.python_backend.text.tokenizer import Tokenizer

MAX_TOKENS = 12
WIDTHS = (2, 4, 7)
PROMPTS = tuple(tuple(range(7 * seed, 7 * seed + length)) for seed, length in enumerate((1, 16, 40), start=1))
STOPPINGS: dict[EarlyStopping, bool | str] = {
    EarlyStopping.FULL: True,
    EarlyStopping.LIKELY: False,
    EarlyStopping.NEVER: "never",
}


@dataclass(frozen=True)
class Answer:
    """One beam: its tokens without an end token, and what it ranks by."""

    token_ids: tuple[int, ...]
    score: float


class Ours:
    """The text layer over an engine."""

    def __init__(self, engine: Path, *adapters: Path) -> None:
        self.executor = open_executor(engine, adapter_directories=adapters)
        self.generator = TextGenerator(self.executor, Tokenizer.load(engine), None, EngineManifest.load(engine))

    def ask(self, prompt: Sequence[int], beams: BeamParams, adapter: str = "", **sampling: Any) -> list[TextDelta]:
        """The answers, the best first."""
        deltas: queue.SimpleQueue[TextDelta] = queue.SimpleQueue()
        params = SamplingParams(**{"max_tokens": MAX_TOKENS, "end_ids": (), "n": beams.width, **sampling})
        request = TextRequest(request_id="r", prompt=tuple(prompt), sampling=params, beams=beams, adapter=adapter)
        self.generator.submit(request, deltas.put)
        return [deltas.get(timeout=60) for _ in range(params.n)]

    def answers(self, prompt: Sequence[int], beams: BeamParams, **sampling: Any) -> list[Answer]:
        """The same as transformers would score them."""
        answers = []
        for index, delta in enumerate(self.ask(prompt, beams, **sampling)):
            assert (delta.index, delta.error) == (index, None)
            assert delta.cum_logprob is not None
            num_tokens = len(delta.token_ids) + (delta.finish_reason is FinishReason.STOP)
            answers.append(Answer(delta.token_ids, delta.cum_logprob / num_tokens**beams.length_penalty))
        return answers

    def close(self) -> None:
        """Nothing may be left of what was asked."""
        assert self.executor.stats().used_blocks == 0
        self.executor.close()
        self.generator.close()


@pytest.fixture(scope="module")
def model() -> Any:
    """Twice as sure as random weights make it, so that answers of several lengths are worth keeping."""
    model = random_model("llama", seed=3)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["prefixes", "no prefixes"])
def ours(request: pytest.FixtureRequest, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    directory = tmp_path_factory.mktemp("beams")
    save_checkpoint(model, directory / "checkpoint")
    build(
        BuildConfig(
            model=str(directory / "checkpoint"),
            output=directory / "engine",
            dtype=DType.FLOAT32,
            enable_prefix_caching=request.param,
        )
    )
    ours = Ours(directory / "engine")
    yield ours
    ours.close()


def theirs(
    model: Any, prompt: Sequence[int], beams: BeamParams, end_ids: Sequence[int] = (), **more: Any
) -> list[Answer]:
    """What transformers answers."""
    output = model.generate(
        torch.tensor([prompt]),
        num_beams=beams.width,
        num_return_sequences=beams.width,
        length_penalty=beams.length_penalty,
        early_stopping=STOPPINGS[beams.early_stopping],
        eos_token_id=list(end_ids) or None,
        pad_token_id=PAD,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **{"max_new_tokens": MAX_TOKENS, **more},
    )
    answers = []
    for sequence, score in zip(output.sequences.tolist(), output.sequences_scores.tolist(), strict=True):
        token_ids = sequence[len(prompt) :]
        ends = [place for place, token in enumerate(token_ids) if token in {*end_ids, PAD, -1}]
        answers.append(Answer(tuple(token_ids[: min(ends, default=len(token_ids))]), score))
    return answers


def assert_equal(ours: list[Answer], theirs: list[Answer]) -> None:
    assert [answer.token_ids for answer in ours] == [answer.token_ids for answer in theirs]
    assert [answer.score for answer in ours] == pytest.approx([answer.score for answer in theirs], rel=1e-5, abs=1e-4)


def likely_ends(model: Any, prompt: Sequence[int]) -> list[int]:
    """Tokens that beams like to say early and late, so that answers of many lengths end."""
    plain = theirs(model, prompt, BeamParams(width=4))
    return list(dict.fromkeys((plain[0].token_ids[3], plain[1].token_ids[7], plain[3].token_ids[5])))


@pytest.mark.parametrize("width", WIDTHS)
def test_without_end_tokens(model: Any, ours: Ours, width: int) -> None:
    for prompt in PROMPTS:
        beams = BeamParams(width=width, length_penalty=1.0)
        assert_equal(ours.answers(prompt, beams), theirs(model, prompt, beams))


@pytest.mark.parametrize("stopping", EarlyStopping)
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_end_tokens_penalties_and_early_stopping(
    model: Any, ours: Ours, length_penalty: float, stopping: EarlyStopping
) -> None:
    lengths = set()
    for prompt in PROMPTS:
        end_ids = likely_ends(model, prompt)
        for width in WIDTHS:
            for num_ends in (1, len(end_ids)):
                beams = BeamParams(width=width, length_penalty=length_penalty, early_stopping=stopping)
                expected = theirs(model, prompt, beams, end_ids[:num_ends])
                assert_equal(ours.answers(prompt, beams, end_ids=tuple(end_ids[:num_ends])), expected)
                lengths |= {len(answer.token_ids) for answer in expected}
    assert len(lengths) > 1


def test_min_tokens_and_bad_words(model: Any, ours: Ours) -> None:
    has_effect = False
    for prompt in PROMPTS:
        plain = theirs(model, prompt, BeamParams(width=4))
        end_ids = likely_ends(model, prompt)
        bad_words = [
            list(plain[0].token_ids[2:4]),
            [plain[1].token_ids[6]],
            [prompt[-1], plain[0].token_ids[0]],
        ]
        beams = BeamParams(width=4, length_penalty=1.0, early_stopping=EarlyStopping.LIKELY)
        expected = theirs(model, prompt, beams, end_ids, min_new_tokens=6, bad_words_ids=bad_words)
        assert min(len(answer.token_ids) for answer in expected) >= 6
        has_effect |= expected != theirs(model, prompt, beams, end_ids)
        asked = {"end_ids": tuple(end_ids), "min_tokens": 6, "bad_words": tuple(map(tuple, bad_words))}
        assert_equal(ours.answers(prompt, beams, **asked), expected)
    assert has_effect


def test_stop_words_end_beams(model: Any, ours: Ours) -> None:
    """transformers stops at them by a StoppingCriteria; the words are part of the answer."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    prompt = PROMPTS[1]
    plain = theirs(model, prompt, BeamParams(width=4))
    words = (plain[0].token_ids[2:4], plain[2].token_ids[6:7])

    class Words(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            rows = [tuple(row) for row in input_ids[:, len(prompt) :].tolist()]
            return torch.tensor([any(row[-len(word) :] == word for word in words) for row in rows])

    beams = BeamParams(width=4)
    expected = theirs(model, prompt, beams, stopping_criteria=StoppingCriteriaList([Words()]))
    deltas = ours.ask(prompt, beams, stop_words=words)
    assert [delta.token_ids for delta in deltas] == [answer.token_ids for answer in expected]
    assert len({len(answer.token_ids) for answer in expected}) > 1


def test_logprobs_are_the_models_own(model: Any, ours: Ours) -> None:
    prompt = PROMPTS[2]
    with torch.inference_mode():
        for delta in ours.ask(prompt, BeamParams(width=3), logprobs=5, prompt_logprobs=0):
            logits = model(torch.tensor([[*prompt, *delta.token_ids]])).logits[0]
            rows = logits.log_softmax(1)[len(prompt) - 1 : -1]
            own = rows.gather(1, torch.tensor(delta.token_ids)[:, None])[:, 0].tolist()
            assert delta.logprobs is not None
            assert [item.token_id for item in delta.logprobs] == list(delta.token_ids)
            assert [item.logprob for item in delta.logprobs] == pytest.approx(own, abs=1e-4)
            assert delta.cum_logprob == pytest.approx(sum(own), abs=1e-4)
            assert [[token for token, _ in item.top] for item in delta.logprobs] == rows.topk(5).indices.tolist()
            assert (delta.prompt_logprobs is not None) == (delta.index == 0)


def test_fewer_answers_than_beams(ours: Ours) -> None:
    beams = BeamParams(width=4)
    assert ours.answers(PROMPTS[0], beams, n=2) == ours.answers(PROMPTS[0], beams)[:2]


def test_searches_beside_each_other_say_what_each_says_alone(ours: Ours) -> None:
    beams = BeamParams(width=4, length_penalty=1.0)
    alone = [ours.answers(prompt, beams) for prompt in PROMPTS]
    together: list[queue.SimpleQueue[TextDelta]] = []
    for number, prompt in enumerate(PROMPTS):
        deltas: queue.SimpleQueue[TextDelta] = queue.SimpleQueue()
        sampling = SamplingParams(max_tokens=MAX_TOKENS, end_ids=(), n=4)
        request = TextRequest(request_id=str(number), prompt=prompt, sampling=sampling, beams=beams)
        ours.generator.submit(request, deltas.put)
        together.append(deltas)
    for answers, deltas in zip(alone, together, strict=True):
        assert [deltas.get(timeout=60).token_ids for _ in answers] == [answer.token_ids for answer in answers]


def test_beams_of_an_adapter_are_pefts(tmp_path: Path) -> None:
    adapted = adapted_engine(tmp_path, 1)
    (shelf := tmp_path / "shelf").mkdir()
    adapted.put(shelf, "french", 1)
    peft: Any = load_adapter(adapted.checkpoint, adapted.peft / "1")
    peft.generation_config.eos_token_id = None
    beams = BeamParams(width=3, length_penalty=1.0)
    ours = Ours(adapted.engine, shelf)
    expected = [answer.token_ids for answer in theirs(peft, PROMPTS[1], beams)]
    with torch.inference_mode():
        assert [delta.token_ids for delta in ours.ask(PROMPTS[1], beams, "french")] == expected
    assert [delta.token_ids for delta in ours.ask(PROMPTS[1], beams)] != expected
    ours.close()


def test_penalties_bias_and_words_are_transformers_processors(model: Any, ours: Ours) -> None:
    """They edit log-probs, in the order of `_get_logits_processor`; presence and frequency are OpenAI's published formula."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class Counted(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, num_prompt_tokens: int) -> None:
            self.num_prompt_tokens = num_prompt_tokens

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            for row, output in enumerate(input_ids[:, self.num_prompt_tokens :].tolist()):
                for token in set(output):
                    scores[row, token] -= 0.4 + 0.7 * output.count(token)
            return scores

    changed = 0
    for prompt in PROMPTS:
        beams = BeamParams(width=4, length_penalty=1.0, early_stopping=EarlyStopping.LIKELY)
        plain, end_ids = theirs(model, prompt, BeamParams(width=4)), likely_ends(model, prompt)
        bias = {plain[0].token_ids[1]: -3.0, plain[3].token_ids[-1]: 2.5, 77: 4.0}
        bad_words = [plain[0].token_ids[4:6], plain[1].token_ids[6:7]]
        for theirs_too, ours_too in (
            ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
            ({"repetition_penalty": 0.8}, {"repetition_penalty": 0.8}),
            ({"sequence_bias": {(token,): value for token, value in bias.items()}}, {"logit_bias": bias}),
            (
                {"logits_processor": LogitsProcessorList([Counted(len(prompt))])},
                {"presence_penalty": 0.4, "frequency_penalty": 0.7},
            ),
            (
                {
                    "repetition_penalty": 1.2,
                    "sequence_bias": {(token,): value for token, value in bias.items()},
                    "bad_words_ids": [list(word) for word in bad_words],
                    "min_new_tokens": 5,
                },
                {"repetition_penalty": 1.2, "logit_bias": bias, "bad_words": tuple(bad_words), "min_tokens": 5},
            ),
        ):
            expected = theirs(model, prompt, beams, end_ids, **theirs_too)
            assert_equal(ours.answers(prompt, beams, end_ids=tuple(end_ids), **ours_too), expected)
            changed += expected != theirs(model, prompt, beams, end_ids)
    assert changed > 10


@dataclass(frozen=True)
class Language:
    """What a guide lets through, in words of Python's own `re`."""

    guide: str
    begins: str
    """Matches whatever may become one of its texts."""


LANGUAGES = (
    Language(guide=r"[a-m]{3,6}[0-9]{2}", begins=r"[a-m]{0,6}|[a-m]{3,6}[0-9]{1,2}"),
    Language(
        guide=r"(the |[b-x]{2,5}-)*[0-9]",
        begins=r"((the |[b-x]{2,5}-)*(t|th|the|[b-x]{1,5})?)|(the |[b-x]{2,5}-)*[0-9]",
    ),
    Language(guide="[ -~]*", begins="[ -~]*"),
)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.guide)
def test_guided_beams_are_those_of_a_constrained_prefix(model: Any, ours: Ours, language: Language) -> None:
    """transformers asks for each beam what may follow; here Python's `re` says so, of every token in the vocabulary."""
    tokenizer = small_tokenizer()
    texts = [
        tokenizer.decode([token]) if token not in (BOS, EOS, PAD) else None
        for token in range(tokenizer.get_vocab_size())
    ]
    (end,) = end_ids = (EOS,)
    begins, whole = re.compile(language.begins), re.compile(language.guide)

    def allowed(num_prompt_tokens: int, sent: Sequence[int]) -> list[int]:
        said = [token for token in sent[num_prompt_tokens:] if token != end]
        text = tokenizer.decode(said)
        next_ones = [
            token
            for token, more in enumerate(texts)
            if more and "\ufffd" not in more and begins.fullmatch(text + more) is not None
        ]
        # Beams that cannot go on are dragged along with a score of -inf, and have to be told something.
        return [*next_ones, *([end] if whole.fullmatch(text) else [])] or [end]

    for prompt in PROMPTS:
        for width, stopping, more in (
            (2, EarlyStopping.FULL, {}),
            (4, EarlyStopping.LIKELY, {"repetition_penalty": 1.3}),
            (4, EarlyStopping.NEVER, {}),
        ):
            beams = BeamParams(width=width, length_penalty=1.0, early_stopping=stopping)

            def follows(_: int, sent: torch.Tensor, length: int = len(prompt)) -> list[int]:
                return allowed(length, sent.tolist())

            expected = theirs(model, prompt, beams, end_ids, prefix_allowed_tokens_fn=follows, **more)
            guide = Guide(GuideKind.REGEX, language.guide)
            guided = ours.answers(prompt, beams, end_ids=end_ids, guide=guide, **more)
            assert_equal(guided, expected)


def test_a_guide_that_lets_fewer_answers_through_than_there_are_beams_says_so(ours: Ours) -> None:
    guide = Guide(GuideKind.REGEX, "ab|cd")
    found = ours.ask(PROMPTS[0], BeamParams(width=4), guide=guide, end_ids=(EOS,))
    assert all(
        str(delta.error).startswith("number of answers is 4: of those that are allowed 2 were found") for delta in found
    )
    two = ours.ask(PROMPTS[0], BeamParams(width=4), guide=guide, end_ids=(EOS,), n=2)
    assert sorted(delta.text for delta in two) == ["ab", "cd"]


def test_a_guided_beam_that_no_end_token_may_end_is_over_when_nothing_can_follow(ours: Ours) -> None:
    guide = Guide(GuideKind.REGEX, "[a-f]{3}")
    for end_ids, min_tokens in (((), 0), ((EOS,), 9)):
        found = ours.ask(PROMPTS[1], BeamParams(width=3), guide=guide, end_ids=end_ids, min_tokens=min_tokens)
        assert all(re.fullmatch("[a-f]{3}", delta.text) for delta in found)
        assert {delta.finish_reason for delta in found} == {FinishReason.STOP}
        assert len({delta.text for delta in found}) == 3
