"""What a client asks of the text door, and what comes back, in Python's types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked. None leaves a tensor out, and the contract's default rules: nothing sent is greedy."""

    text: str
    max_tokens: int
    chat: bool = False
    """Whether the engine's chat template is put around the text."""
    adapter: str = ""
    """Name of the LoRA adapter that answers; empty is the base model."""
    temperature: float | None = None
    top_k: int | None = None
    """0 is off, and must be sent to be off: Triton's contract takes the most likely token otherwise."""
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    max_draft_tokens: int | None = None
    """Guessed ahead in one step at most; 0 guesses nothing, None is the engine's limit. It changes no answer."""
    drafters: tuple[str, ...] = ()
    """Who may guess; all that the engine has where none is named."""

    def tensors(self, stream: bool) -> Iterator[tuple[str, str, list[Any]]]:
        """(name, Triton datatype, values) of each input; each is sent with a batch dimension of 1 in front."""
        yield "text_input", "BYTES", [self.text.encode()]
        yield "max_tokens", "INT32", [self.max_tokens]
        yield "stream", "BOOL", [stream]
        for wanted in ("exclude_input_in_output", "return_finish_reason", "return_num_input_tokens"):
            yield wanted, "BOOL", [True]
        yield "return_num_output_tokens", "BOOL", [True]
        if self.chat:
            yield "apply_chat_template", "BOOL", [True]
        optional = {
            "temperature": ("FP32", self.temperature),
            "top_k": ("INT32", self.top_k),
            "top_p": ("FP32", self.top_p),
            "min_p": ("FP32", self.min_p),
            "seed": ("UINT64", self.seed),
            "num_return_sequences": ("INT32", None if self.n == 1 else self.n),
            "max_draft_tokens": ("INT32", self.max_draft_tokens),
        }
        for name, (datatype, value) in optional.items():
            if value is not None:
                yield name, datatype, [value]
        if self.stop:
            yield "stop_words", "BYTES", [word.encode() for word in self.stop]
        if self.adapter:
            yield "lora_name", "BYTES", [self.adapter.encode()]
        if self.drafters:
            yield "drafters", "BYTES", [name.encode() for name in self.drafters]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One piece of one answer."""

    text: str
    index: int
    """Which of the prompt's `n` answers it belongs to."""
    token_ids: tuple[int, ...]
    finish_reason: str | None
    """With the last chunk of an answer: stop, length, cancelled, timeout or error."""
    num_input_tokens: int | None
    num_output_tokens: int
    """New with this chunk."""
    received: float
    """`time.monotonic()` seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The whole of one answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    num_input_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What an exchange cost, as the client saw it. Times are seconds."""

    num_input_tokens: int
    num_output_tokens: int
    """Over all answers."""
    num_first_tokens: int
    """Of these, those that came with the first text: more than one where they were guessed ahead."""
    ttft: float
    """From sending the prompt to the first text."""
    seconds: float
    """From sending the prompt to the last."""

    @property
    def tokens_per_second(self) -> float:
        """Rate of the tokens behind the first text, or of all where all came with it; 0 where there is none."""
        num_tokens, seconds = self.num_output_tokens - self.num_first_tokens, self.seconds - self.ttft
        if num_tokens == 0:
            num_tokens, seconds = self.num_output_tokens, self.seconds
        return num_tokens / seconds if seconds > 0 else 0.0


def join(chunks: Iterable[Chunk]) -> list[Completion]:
    """The answers that chunks make up, by index."""
    answers: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        answers.setdefault(chunk.index, []).append(chunk)
    return [
        Completion(
            text="".join(part.text for part in parts),
            token_ids=tuple(token for part in parts for token in part.token_ids),
            finish_reason=parts[-1].finish_reason,
            num_input_tokens=max(part.num_input_tokens or 0 for part in parts),
            num_output_tokens=sum(part.num_output_tokens for part in parts),
        )
        for _, parts in sorted(answers.items())
    ]


def measure(started: float, chunks: list[Chunk]) -> Figures:
    """Figures of an exchange that was sent at `started` (`time.monotonic()`) and gave `chunks`."""
    answers = join(chunks)
    told = [chunk for chunk in chunks if chunk.text or chunk.token_ids]
    times = [chunk.received for chunk in told] or [started]
    return Figures(
        num_input_tokens=max((answer.num_input_tokens for answer in answers), default=0),
        num_output_tokens=sum(answer.num_output_tokens for answer in answers),
        num_first_tokens=told[0].num_output_tokens if told else 0,
        ttft=times[0] - started,
        seconds=times[-1] - started,
    )
