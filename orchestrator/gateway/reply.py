"""What both kinds of reply have: ids, log-probs and usage in OpenAI's shape, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from trierarch.orchestrator.gateway.piece import Piece, TokenLogprob, Usage

DONE: Final = b"data: [DONE]\n\n"
_MARK: Final = "\0"
"""Stands for what changes in a chunk that is built ahead."""


class Reply(Protocol):
    """Makes an answer of pieces: a stream of events, or one whole."""

    def events(self, prompt: int, piece: Piece) -> bytes:
        """Events that tell of a piece of the answer to the prompt of that number; maybe none."""
        ...

    def usage_event(self, usage: TotalUsage) -> bytes:
        """The event with the usage, which comes last."""
        ...

    def whole(self, answers: Sequence[WholeAnswer], usage: TotalUsage) -> bytes:
        """The body of an answer that is not streamed."""
        ...


@dataclass(slots=True)
class WholeAnswer:
    """One answer, gathered."""

    prompt: int
    index: int
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: str = "stop"

    def add(self, piece: Piece) -> None:
        """Take its next piece."""
        self.text.append(piece.text)
        self.logprobs += piece.logprobs
        self.prompt_logprobs = piece.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = piece.finish_reason or self.finish_reason


@dataclass(slots=True)
class TotalUsage:
    """Tokens of all answers; a prompt counts once, however many answers it has."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def add(self, usage: Usage, is_first: bool) -> None:
        """Count an answer; `is_first` of its prompt."""
        self.completion_tokens += usage.completion_tokens
        if is_first:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens

    def content(self) -> dict[str, Any]:
        """The usage for JSON."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class TextChunks:
    """Chunks that differ in their text alone, which most of them do: what stands around it is built once for each choice."""

    def __init__(self, chunk: Callable[[int, str], bytes]) -> None:
        """`chunk` builds the whole one of a choice and a text."""
        self._chunk = chunk
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def of(self, choice: int, text: str) -> bytes:
        """`chunk(choice, text)`, sooner."""
        frame = self._frames.get(choice)
        if frame is None:
            before, after = self._chunk(choice, _MARK).split(json.dumps(_MARK).encode())
            frame = self._frames[choice] = (before, after)
        return frame[0] + json.dumps(text).encode() + frame[1]


def event(content: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def chat_logprobs(items: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Log-probs as chats have them."""
    return {
        "content": [
            {
                "token": item.text,
                "logprob": item.logprob,
                "bytes": list(item.data),
                "top_logprobs": [
                    {"token": text, "logprob": logprob, "bytes": list(data)} for text, data, logprob in item.top
                ],
            }
            for item in items
        ],
        "refusal": None,
    }


def completion_logprobs(items: Iterable[TokenLogprob | None], texts: Sequence[str], offset: int) -> dict[str, Any]:
    """Log-probs as completions have them. The first token of a text has none.

    texts: of tokens whose log-prob is None, in order.
    """
    missing = iter(texts)
    tokens, logprobs, tops, offsets = [], [], [], []
    for item in items:
        text = next(missing, "") if item is None else item.text
        tokens.append(text)
        logprobs.append(None if item is None else item.logprob)
        tops.append(None if item is None else {top: logprob for top, _, logprob in item.top})
        offsets.append(offset)
        offset += len(text)
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}
