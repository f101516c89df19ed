"""The text layer on a scripted executor: what each client sees, whatever happens."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.memory_adapters import make_adapter
from support.random_engine import tiny_architecture, tiny_manifest
from support.scripted_executor import ScriptedExecutor
from support.tokenizers import small_tokenizer
from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, Overloaded, UnknownAdapter
from trierarch.python_backend.request import FinishReason, SamplingParams, SpeculationParams, TokenLogprob
from trierarch.python_backend.text.chat import Chat
from trierarch.python_backend.text.chat_template import ChatTemplate
from trierarch.python_backend.text.generator import TextDelta, TextGenerator, TextRequest
from trierarch.python_backend.text.words import spellings

TOKENIZER = small_tokenizer("byte_level")
TEMPLATE = ChatTemplate("<|im_start|>{{ messages[0].content }}<|im_end|>")


class World:
    """A generator on a scripted executor, and what each request's sink got."""

    def __init__(self, executor: ScriptedExecutor | None = None, template: ChatTemplate | None = TEMPLATE) -> None:
        self.executor = executor or ScriptedExecutor()
        self.generator = TextGenerator(self.executor, TOKENIZER, template, tiny_manifest(tiny_architecture()))
        self.deltas: dict[str, list[TextDelta]] = {}

    def submit(self, request_id: str = "r", prompt: Any = "The capital", **fields: Any) -> tuple[int, ...]:
        """Submit; fields of TextRequest and, where it has none of that name, of SamplingParams may be mixed."""
        sampling = {name: fields.pop(name) for name in list(fields) if name not in TextRequest.__dataclass_fields__}
        params = SamplingParams(**{"max_tokens": 50, **sampling})
        self.deltas[request_id] = []
        request = TextRequest(request_id=request_id, prompt=prompt, sampling=params, **fields)
        return self.generator.submit(request, self.deltas[request_id].append)

    def settle(self) -> None:
        """Wait until everything emitted so far is out: a further request's last delta comes after it."""
        done = threading.Event()
        request = TextRequest(request_id="settle", prompt=(1,), sampling=SamplingParams(max_tokens=1))
        self.generator.submit(request, lambda _: done.set())
        self.executor.finish("settle")
        assert done.wait(60)

    def text(self, request_id: str = "r", index: int = 0) -> str:
        """All the text of an index."""
        return "".join(delta.text for delta in self.deltas[request_id] if delta.index == index)

    def last(self, request_id: str = "r", index: int = 0) -> TextDelta:
        """The one last delta of an index; nothing came after it."""
        deltas = [delta for delta in self.deltas[request_id] if delta.index == index]
        assert [delta.finish_reason is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
        return deltas[-1]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.generator.close()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode_inner(text, "text")


def test_text_streams_and_ends_with_usage(world: World) -> None:
    prompt = world.submit()
    assert prompt == tuple(TOKENIZER.encode("The capital")) == world.executor.requests["r"].prompt_token_ids
    output = ids(" of France is 😀東京")
    for token_id in output[:-1]:
        world.executor.emit("r", token_id)
    world.executor.finish("r", output[-1], num=len(output))
    world.settle()
    assert world.text() == " of France is 😀東京"
    assert [token_id for delta in world.deltas["r"] for token_id in delta.token_ids] == output
    last = world.last()
    assert (last.finish_reason, last.stop_reason, last.error) == (FinishReason.LENGTH, None, None)
    assert last.usage is not None
    assert last.usage.num_output_tokens == len(output)
    assert world.executor.aborted == []


def test_a_stop_string_ends_the_stream_and_the_work(world: World) -> None:
    world.submit(stop=("France", "Rome"))
    output = ids(" of France")
    for token_id in output:
        world.executor.emit("r", token_id)
    for token_id in ids(" and more"):
        world.executor.emit("r", token_id)
    world.settle()
    assert world.executor.aborted == ["r"]
    world.executor.finish("r", reason=FinishReason.CANCELLED)
    world.settle()
    last = world.last()
    assert world.text() == " of "
    assert (last.finish_reason, last.stop_reason, last.error) == (FinishReason.STOP, "France", None)
    assert last.usage is not None
    assert last.usage.num_output_tokens == len(output)
    assert [token_id for delta in world.deltas["r"] for token_id in delta.token_ids] == output


def test_a_stop_string_in_the_last_delta(world: World) -> None:
    world.submit(stop=("is",), include_stop=True)
    logprobs = tuple(TokenLogprob(token_id, -1.0) for token_id in ids("The is it"))
    world.executor.finish("r", *ids("The is it"), num=len(ids("The is it")))
    world.executor.aborted.clear()
    world.submit("s", stop=("is",), logprobs=0)
    world.executor.emit("s", *ids("The is it"), logprobs=logprobs)
    world.executor.finish("s", reason=FinishReason.CANCELLED)
    world.settle()
    assert (world.text(), world.last().stop_reason) == ("The is", "is")
    shown = world.deltas["s"][0]
    assert shown.logprobs == logprobs[: len(shown.token_ids)]
    assert TOKENIZER.decode(shown.token_ids).rstrip() == "The is"
    assert (world.text("s"), world.last("s").finish_reason) == ("The ", FinishReason.STOP)
    assert world.executor.aborted == ["s"]


def test_stop_strings_wait_for_min_tokens(world: World) -> None:
    output = ids("the the the the")
    world.submit(stop=("the",), min_tokens=2)
    world.executor.finish("r", *output)
    world.settle()
    assert world.text() == TOKENIZER.decode(output[:2]) + " "
    assert world.last().stop_reason == "the"


def test_each_index_ends_for_itself(world: World) -> None:
    world.submit(n=3, stop=("Rome",))
    world.executor.emit("r", *ids(" Rome"), index=0)
    world.executor.finish("r", *ids(" Paris"), index=1)
    world.executor.emit("r", *ids(" Italy"), index=2)
    world.executor.emit("r", *ids(" Italy"), index=0)
    world.settle()
    assert world.executor.aborted == []
    world.executor.emit("r", *ids(" Rome"), index=2)
    world.settle()
    assert world.executor.aborted == ["r"]
    for index in (0, 2):
        world.executor.finish("r", index=index, reason=FinishReason.CANCELLED)
    world.settle()
    assert [world.text(index=index) for index in range(3)] == [" ", " Paris", " Italy "]
    reasons = [world.last(index=index).finish_reason for index in range(3)]
    assert reasons == [FinishReason.STOP, FinishReason.LENGTH, FinishReason.STOP]
    assert world.executor.aborted == ["r"]


def test_what_is_held_back_comes_with_the_last_delta(world: World) -> None:
    world.submit(stop=("France!",))
    for token_id in ids(" of France"):
        world.executor.emit("r", token_id)
    world.executor.emit("r", *ids("😀")[:2])
    world.settle()
    assert world.text() == " of "
    world.executor.finish("r")
    world.settle()
    assert world.text() == " of France�"
    assert world.last().finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.TIMEOUT, FinishReason.ERROR])
def test_other_endings_pass_through(world: World, reason: FinishReason) -> None:
    world.submit()
    world.executor.emit("r", *ids(" of"))
    world.executor.finish("r", reason=reason)
    world.settle()
    assert world.text() == " of"
    assert world.last().finish_reason is reason


def test_abort_is_passed_on(world: World) -> None:
    world.submit()
    world.generator.abort("r")
    assert world.executor.aborted == ["r"]


def test_a_sink_that_raises_harms_nobody_else(world: World, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def broken(delta: TextDelta) -> None:
        calls.append(delta)
        raise BrokenPipeError("client gone")

    world.generator.submit(TextRequest(request_id="gone", prompt="The", sampling=SamplingParams(max_tokens=9)), broken)
    world.submit("other")
    for token_id in ids(" of France"):
        world.executor.emit("gone", token_id)
        world.executor.emit("other", token_id)
    world.executor.finish("gone", reason=FinishReason.CANCELLED)
    world.executor.finish("other")
    world.settle()
    assert len(calls) == 1
    assert world.executor.aborted == ["gone"]
    assert world.text("other") == " of France"
    assert "gone" in caplog.text


def test_a_detokenizer_that_fails_ends_its_request_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real, poison = TOKENIZER.bytes.of, ids(" Paris")[0]

    def of(token_id: int) -> bytes:
        if token_id == poison:
            raise RuntimeError("broken")
        return real(token_id)

    monkeypatch.setattr(TOKENIZER.bytes, "of", of)
    world.submit("a")
    world.submit("b")
    for request_id in ("a", "b"):
        world.executor.emit(request_id, *ids(" of"))
    world.executor.emit("a", poison)
    world.executor.emit("a", *ids(" more"))
    world.executor.finish("b", *ids(" Rome"))
    world.settle()
    assert world.executor.aborted == ["a"]
    world.executor.finish("a", reason=FinishReason.CANCELLED)
    world.settle()
    assert (world.text("a"), world.text("b")) == (" of", " of Rome")
    assert world.last("a").finish_reason is FinishReason.ERROR
    assert isinstance(world.last("a").error, ExecutorFailed)
    assert world.last("b").finish_reason is FinishReason.LENGTH


def test_fields_reach_the_executor(world: World) -> None:
    world.executor.known["a1"] = make_adapter("a1")
    world.submit(
        prompt=(5, 6, 7), adapter="a1", cache_salt="s", priority=3, timeout=60.0, bad_words=("Paris",),
        bias_words=(("Rome", 2.0), ("Italy", -math.inf)), logit_bias={3: 1.0}, temperature=0.5,
        speculation=SpeculationParams(max_draft_tokens=2),
    )  # fmt: skip
    request = world.executor.requests["r"]
    assert request.prompt_token_ids == (5, 6, 7)
    assert (request.adapter, request.cache_salt, request.priority) == (world.executor.known["a1"], "s", 3)
    assert request.speculation == SpeculationParams(max_draft_tokens=2)
    assert request.deadline == request.arrival_time + 60.0
    assert request.sampling.bad_words == tuple(spellings(TOKENIZER, ["Paris"], "bad_words"))
    assert request.sampling.logit_bias[3] == 1.0
    assert -math.inf in request.sampling.logit_bias.values()
    assert request.sampling.temperature == 0.5


def test_an_unknown_adapter_is_refused_before_anything_is_queued(world: World) -> None:
    with pytest.raises(UnknownAdapter, match="adapter is 'a2'"):
        world.submit(adapter="a2")
    assert not world.executor.requests


def test_a_chat_goes_through_the_template(world: World) -> None:
    assert TOKENIZER.decode(world.submit(prompt="Hi", is_chat=True), skip_special_tokens=False) == (
        "<|im_start|>Hi<|im_end|>"
    )


def test_requests_that_are_refused() -> None:
    world = World(template=None)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": ()}),
        ("prompt", {"prompt": "\ud800"}),
        ("prompt", {"prompt": b"\xff"}),
        ("prompt", {"prompt": "x" * 100_000}),
        ("is_chat", {"prompt": "Hi", "is_chat": True}),
        ("is_chat", {"prompt": (1, 2), "is_chat": True}),
        ("stop", {"stop": ("",)}),
        ("bad_words", {"bad_words": ("",)}),
        ("bias_words", {"bias_words": (("", 1.0),)}),
        ("bias_words['a']", {"bias_words": (("a", math.nan),)}),
        ("timeout", {"timeout": 0.0}),
        ("timeout", {"timeout": math.inf}),
        ("drafters", {"speculation": SpeculationParams(drafters=(DrafterKind.SUFFIX,))}),
    ]
    for field, fields in refused:
        with pytest.raises(InvalidRequest) as caught:
            world.submit(**fields)
        assert caught.value.field == field
    assert world.executor.requests == {}
    world.generator.close()
    full = World(ScriptedExecutor(Overloaded("full")))
    with pytest.raises(Overloaded):
        full.submit()
    full.generator.close()
    full.generator.close()


@settings(deadline=None, max_examples=40)
@given(
    text=st.lists(st.sampled_from(["a", "b", " ", "😀", "ab", "é", "\n"]), max_size=20).map("".join),
    stop=st.lists(st.text("ab 😀", min_size=1, max_size=4), max_size=3).map(tuple),
    sizes=st.lists(st.integers(1, 4), max_size=60),
)
def test_any_stream_is_the_text_up_to_its_stop_string(text: str, stop: tuple[str, ...], sizes: list[int]) -> None:
    world = World()
    world.submit(stop=stop)
    output = ids(text)
    for size in sizes:
        if output[:size]:
            world.executor.emit("r", *output[:size])
        output = output[size:]
    world.executor.finish("r", *output)
    world.generator.close()
    ends = [(text.find(string) + len(string), -len(string)) for string in stop if string in text]
    end, length = min(ends, default=(len(text), 0))
    assert world.text() == text[: end + length]
    assert world.last().finish_reason is (FinishReason.STOP if ends else FinishReason.LENGTH)


CHAT = Chat(messages=({"role": "user", "content": "The capital"},))


def test_a_chat_is_rendered_by_the_engines_template() -> None:
    world = World()
    expected = world.submit("plain", "The capital", is_chat=True)
    assert world.submit("chat", "", chat=CHAT) == expected


def test_a_prompt_that_goes_on_ends_with_the_last_words() -> None:
    template = ChatTemplate("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    chat = Chat(
        messages=(*CHAT.messages, {"role": "assistant", "content": "of France "}),
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert template.prompt(chat) == "<|im_start|>The capital<|im_end|><|im_start|>of France"
    silent = ChatTemplate("{{ messages[0].content }}")
    with pytest.raises(InvalidRequest, match="leaves the last message out"):
        silent.prompt(chat)


def test_a_chat_needs_a_template() -> None:
    with pytest.raises(InvalidRequest, match=r"^messages .*no chat template"):
        World(template=None).submit(prompt="", chat=CHAT)


def test_tokens_of_a_prompt_and_its_text() -> None:
    world = World()
    request = TextRequest(request_id="r", prompt="The capital", sampling=SamplingParams(max_tokens=1))
    token_ids, text = world.generator.tokenize(request)
    assert list(token_ids) == TOKENIZER.encode("The capital")
    assert text == "The capital"


def test_max_tokens_are_fitted_behind_the_prompt_where_asked() -> None:
    world = World()
    prompt = world.submit("fits", max_tokens=10**9, fit_max_tokens=True)
    room = min(100 + 1, tiny_manifest(tiny_architecture()).limits.max_seq_len) - len(prompt)
    assert world.executor.requests["fits"].sampling.max_tokens == room
    world.submit("less", max_tokens=2, fit_max_tokens=True)
    assert world.executor.requests["less"].sampling.max_tokens == 2


def test_bytes_of_the_tokens_that_log_probs_name() -> None:
    world = World()
    world.submit(return_token_bytes=True, logprobs=1)
    token, rival = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    world.executor.emit("r", token, logprobs=(TokenLogprob(token, -0.5, ((rival, -1.0),)),))
    world.executor.finish("r")
    world.settle()
    assert world.deltas["r"][0].token_bytes == {token: b"a", rival: b"b"}
