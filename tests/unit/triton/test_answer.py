"""One Triton request from its rows to its last response, with a generator and a channel that are played by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from support.triton_metrics import RecordingRegistry
from trierarch.python_backend.beams.params import BeamParams
from trierarch.python_backend.errors import Cancelled, ExecutorFailed, InvalidRequest, Overloaded
from trierarch.python_backend.request import FinishReason, SamplingParams, TokenLogprob, Usage
from trierarch.python_backend.text.text_request import TextDelta, TextRequest
from trierarch.python_backend.triton.answer import Answer
from trierarch.python_backend.triton.metrics import EngineMetrics
from trierarch.python_backend.triton.reply import ReplyOptions
from trierarch.python_backend.triton.request_parser import Row
from trierarch.python_backend.triton.responses import NamedArray

USAGE = Usage(
    num_prompt_tokens=2,
    num_cached_tokens=0,
    num_output_tokens=3,
    arrival_ns=0,
    first_scheduled_ns=1,
    first_token_ns=2,
    last_token_ns=3,
)
Sink = Callable[[TextDelta], None]


class HandPlayedGenerator:
    """Takes requests of prompt (1, 2); the test says what comes back."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.sinks: dict[str, Sink] = {}
        self.aborted: list[str] = []
        self.refusal = refusal

    def submit(self, request: TextRequest, sink: Sink) -> tuple[int, ...]:
        if self.refusal is not None and self.sinks:
            raise self.refusal
        self.sinks[request.request_id] = sink
        return (1, 2)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def say(self, request_id: str, text: str, *token_ids: int, index: int = 0, **fields: Any) -> None:
        self.sinks[request_id](TextDelta(request_id=request_id, index=index, text=text, token_ids=token_ids, **fields))

    def end(self, request_id: str, text: str, *token_ids: int, index: int = 0, **fields: Any) -> None:
        last = {"finish_reason": FinishReason.LENGTH, "usage": USAGE} | fields
        self.say(request_id, text, *token_ids, index=index, **last)


class RecordingChannel:
    """Keeps what was sent; like the real one it takes nothing after the last response."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], bool]] = []
        self.error: BaseException | None = None
        self.is_open = True
        self.is_gone = False

    def send(self, arrays: Sequence[NamedArray], is_final: bool) -> None:
        if self.is_open:
            self.sent.append(({name: array.reshape(-1).tolist() for name, array in arrays}, is_final))
            self.is_open = not is_final

    def fail(self, error: BaseException) -> None:
        if self.is_open:
            self.error, self.is_open = error, False

    def is_cancelled(self) -> bool:
        return self.is_gone

    @property
    def texts(self) -> list[str]:
        return [b"".join(arrays["text_output"]).decode() for arrays, _ in self.sent]

    @property
    def finals(self) -> list[bool]:
        return [is_final for _, is_final in self.sent]


class Scene:
    """An answer with everything around it."""

    def __init__(
        self, *, n: int = 1, num_rows: int = 1, outputs: str = "output_ids text_output", refusal: Exception | None = None,
        is_streaming: bool = True, echo: bool = False, beams: BeamParams | None = None,
    ) -> None:  # fmt: skip
        self.generator = HandPlayedGenerator(refusal)
        self.channel = RecordingChannel()
        self.registry = RecordingRegistry()
        self.ended: list[Answer] = []
        rows = [
            Row(
                TextRequest(
                    request_id=f"r.{index}", prompt="Hi", sampling=SamplingParams(max_tokens=9, n=n), beams=beams
                ),
                ReplyOptions(
                    is_text=True,
                    is_streaming=is_streaming,
                    echo=echo,
                    outputs=frozenset(outputs.split()),
                    batch_index=index,
                ),
            )
            for index in range(num_rows)
        ]
        metrics = EngineMetrics(self.registry, "m", "1")
        self.answer = Answer("id", rows, self.channel, self.generator, metrics, self.ended.append)
        self.answer.start()


def test_streaming_sends_each_delta_and_marks_the_last() -> None:
    scene = Scene()
    scene.generator.say("r.0", "a", 5)
    scene.generator.say("r.0", "b", 6)
    scene.generator.end("r.0", "c", 7)
    assert scene.channel.texts == ["a", "b", "c"]
    assert [arrays["output_ids"] for arrays, _ in scene.channel.sent] == [[5], [6], [7]]
    assert scene.channel.finals == [False, False, True]
    assert scene.ended == [scene.answer]


def test_unstreamed_answers_come_whole_after_the_prompt() -> None:
    scene = Scene(is_streaming=False, echo=True)
    scene.generator.say("r.0", " a", 5)
    scene.generator.end("r.0", " b", 6)
    assert scene.channel.sent == [({"output_ids": [1, 2, 5, 6], "text_output": [b"Hi a b"]}, True)]


def test_tokens_whose_text_is_held_back_are_sent_to_who_reads_tokens() -> None:
    scene = Scene()
    scene.generator.say("r.0", "", 5)
    assert scene.channel.sent == [({"output_ids": [5], "text_output": [b""]}, False)]


def test_who_reads_only_text_is_not_sent_empty_text_but_counts_are_kept() -> None:
    scene = Scene(outputs="text_output num_output_tokens")
    scene.generator.say("r.0", "", 5)
    scene.generator.say("r.0", "é", 6)
    scene.generator.end("r.0", "")
    assert [arrays for arrays, _ in scene.channel.sent] == [
        {"text_output": ["é".encode()], "num_output_tokens": [2]},
        {"text_output": [b""], "num_output_tokens": [0]},
    ]


def test_log_probs_add_up() -> None:
    scene = Scene(outputs="text_output cum_log_probs output_log_probs")
    scene.generator.say("r.0", "a", 5, logprobs=(TokenLogprob(5, -1.0),))
    scene.generator.end("r.0", "b", 6, logprobs=(TokenLogprob(6, -0.5),))
    assert [arrays["cum_log_probs"] for arrays, _ in scene.channel.sent] == [[-1.0], [-1.5]]
    assert [arrays["output_log_probs"] for arrays, _ in scene.channel.sent] == [[-1.0], [-0.5]]


def test_the_last_sequence_of_the_last_row_ends_the_request() -> None:
    scene = Scene(n=2, num_rows=2, outputs="text_output batch_index sequence_index")
    for request_id, index in (("r.1", 0), ("r.0", 1), ("r.0", 0), ("r.1", 1)):
        scene.generator.end(request_id, "x", 5, index=index)
    assert scene.channel.finals == [False, False, False, True]
    assert [(a["batch_index"][0], a["sequence_index"][0]) for a, _ in scene.channel.sent] == [
        (1, 0), (0, 1), (0, 0), (1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("is_streaming", [True, False])
def test_all_beams_of_a_row_share_one_response(is_streaming: bool) -> None:
    outputs = "output_ids sequence_length text_output cum_log_probs output_log_probs num_output_tokens"
    scene = Scene(
        n=2, num_rows=2, outputs=outputs, is_streaming=is_streaming, echo=not is_streaming, beams=BeamParams(width=3)
    )
    logprobs = (TokenLogprob(5, -1.0), TokenLogprob(6, -0.5))
    for row in ("r.1", "r.0"):
        scene.generator.end(row, "ab", 5, 6, logprobs=logprobs, cum_logprob=-1.75)
        assert len(scene.channel.sent) == (row == "r.0")
        usage = replace(USAGE, num_output_tokens=1)
        scene.generator.end(row, "c", 7, index=1, logprobs=logprobs[:1], cum_logprob=-2.0, usage=usage)
    assert scene.channel.finals == [False, True]
    prompt, text = ([], b"") if is_streaming else ([1, 2], b"Hi")
    for arrays, _ in scene.channel.sent:
        assert arrays["output_ids"] == [*prompt, 5, 6, *prompt, 7, -1]
        assert arrays["sequence_length"] == [len(prompt) + 2, len(prompt) + 1]
        assert arrays["text_output"] == [text + b"ab", text + b"c"]
        assert arrays["cum_log_probs"] == [-1.75, -2.0]
        assert arrays["output_log_probs"] == [-1.0, -0.5, -1.0, 0.0]
        assert arrays["num_output_tokens"] == [3]
    # A request counts once, with the tokens of all its beams: so TensorRT-LLM's own test of its histograms has it.
    assert scene.registry.values("nv_llm_output_token_len") == [4, 4]


@pytest.mark.parametrize("is_streaming", [True, False])
def test_each_sequence_tells_what_became_of_its_own_drafts(is_streaming: bool) -> None:
    scene = Scene(n=2, outputs="text_output acceptance_rate total_draft_tokens", is_streaming=is_streaming)
    scene.generator.say("r.0", "a", 5, 6, 7, index=1)
    scene.generator.end("r.0", "b", 8, index=1, usage=replace(USAGE, num_draft_tokens=4, num_accepted_draft_tokens=3))
    scene.generator.end("r.0", "c", 9, index=0)
    *streamed, last_of_1, last_of_0 = [arrays for arrays, _ in scene.channel.sent]
    assert [arrays["total_draft_tokens"] for arrays in streamed] == [[0]] * is_streaming
    assert (last_of_1["acceptance_rate"], last_of_1["total_draft_tokens"]) == ([0.75], [4])
    assert (last_of_0["acceptance_rate"], last_of_0["total_draft_tokens"]) == ([0.0], [0])


@pytest.mark.parametrize("refusal", [Overloaded("full"), ExecutorFailed("broken")])
def test_a_refused_row_ends_the_request_and_frees_the_others(refusal: Exception) -> None:
    scene = Scene(num_rows=2, refusal=refusal)
    assert scene.channel.error is refusal
    assert "r.0" in scene.generator.aborted
    assert scene.ended == [scene.answer]


def test_a_refusal_names_the_clients_tensor() -> None:
    scene = Scene(num_rows=2, refusal=InvalidRequest("prompt", "", "has no tokens"))
    assert str(scene.channel.error) == "text_input is '': has no tokens"


def test_an_error_on_the_way_ends_the_request() -> None:
    scene = Scene(n=2)
    error = ExecutorFailed("a step failed")
    scene.generator.say("r.0", "a", 5)
    scene.generator.end("r.0", "", finish_reason=FinishReason.ERROR, error=error)
    scene.generator.end("r.0", "late", index=1)
    assert scene.channel.error is error
    assert scene.channel.texts == ["a"]
    assert scene.ended == [scene.answer]


def test_cancelling_frees_the_work_and_says_so() -> None:
    scene = Scene()
    scene.channel.is_gone = True
    assert scene.answer.is_cancelled()
    scene.answer.cancel()
    scene.answer.cancel()
    assert isinstance(scene.channel.error, Cancelled)
    assert scene.generator.aborted == ["r.0"]
    assert scene.ended == [scene.answer]


def test_stopping_ends_with_an_empty_response_and_no_error() -> None:
    scene = Scene()
    scene.generator.say("r.0", "a", 5)
    scene.answer.stop()
    assert scene.channel.sent[-1] == ({}, True)
    assert scene.channel.error is None
    assert scene.generator.aborted == ["r.0"]


def test_a_response_that_cannot_be_made_ends_the_request() -> None:
    scene = Scene()
    scene.generator.say("r.0", "\ud800", 5)  # no UTF-8 form
    assert isinstance(scene.channel.error, UnicodeEncodeError)
    assert scene.generator.aborted == ["r.0"]


def test_sequences_and_tokens_are_counted() -> None:
    scene = Scene()
    scene.generator.say("r.0", "a", 5)
    scene.generator.say("r.0", "bc", 6, 7)
    scene.generator.end("r.0", "")
    assert scene.registry.values("nv_llm_output_token_len") == [3]
    assert len(scene.registry.values("trierarch_inter_token_latency_seconds")) == 2
