"""ChatReply: pieces of text as chat completions, whole or as chunks."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trierarch.orchestrator.gateway.piece import Piece
from trierarch.orchestrator.gateway.reply import TextChunks, TotalUsage, WholeAnswer, chat_logprobs, event
from trierarch.orchestrator.gateway.tool_calls import CallDelta, Delta, Text, ToolCallParser
from trierarch.orchestrator.gateway.tools import Calling, Tools


class ChatReply:
    """The reply to one chat."""

    def __init__(
        self,
        *,
        reply_id: str,
        created: int,
        model: str,
        fingerprint: str | None,
        tools: Tools,
        has_logprobs: bool,
        include_usage: bool,
    ) -> None:
        """`created`: seconds of Unix time; `fingerprint`: of the engine."""
        self._id, self._created, self._model, self._fingerprint = reply_id, created, model, fingerprint
        self._tools = tools
        self._has_logprobs = has_logprobs
        self._include_usage = include_usage
        self._answers: dict[int, _Answer] = {}  # index -> what is told of it so far
        self._texts = TextChunks(lambda index, text: self._chunk(index, {"content": text}, None))

    def events(self, prompt: int, piece: Piece) -> bytes:
        """See Reply."""
        index = piece.index
        answer = self._answers.get(index)
        if answer is None:
            answer = self._answers[index] = _Answer(self._tools)
            opening = self._chunk(index, {"role": "assistant", "content": ""}, None)
        else:
            opening = b""
        if answer.parser is None and self._tools.calling is not Calling.ONE and not piece.logprobs:
            told = self._texts.of(index, piece.text) if piece.text else b""  # the most of them
        else:
            told = self._told(answer, piece)
        if piece.finish_reason is None:
            return opening + told
        return opening + told + self._chunk(index, {}, answer.finish_reason(piece.finish_reason))

    def usage_event(self, usage: TotalUsage) -> bytes:
        """See Reply."""
        return event(self._envelope([]) | {"usage": usage.content()})

    def whole(self, answers: Sequence[WholeAnswer], usage: TotalUsage) -> bytes:
        """See Reply."""
        choices = []
        for whole in answers:
            answer = _Answer(self._tools)
            deltas = [*answer.read("".join(whole.text)), *answer.finish()]
            text = "".join(delta.text for delta in deltas if isinstance(delta, Text))
            calls = _joined(delta for delta in deltas if isinstance(delta, CallDelta))
            message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
            if calls:
                message["tool_calls"] = calls
            message["refusal"] = None
            choices.append(
                {
                    "index": whole.index,
                    "message": message,
                    "logprobs": chat_logprobs(whole.logprobs) if self._has_logprobs else None,
                    "finish_reason": answer.finish_reason(whole.finish_reason),
                }
            )
        envelope = self._envelope(choices) | {"object": "chat.completion", "usage": usage.content()}
        return json.dumps(envelope).encode()

    def _told(self, answer: _Answer, piece: Piece) -> bytes:
        deltas = [*answer.read(piece.text)]
        if piece.finish_reason is not None:
            deltas += answer.finish()
        logprobs = chat_logprobs(piece.logprobs) if piece.logprobs else None
        contents = [_delta(delta) for delta in deltas]
        if logprobs is not None and not contents:
            contents = [{"content": ""}]  # what the tokens say is held back; they are told of all the same
        chunks = []
        for content in contents:
            chunks.append(self._chunk(piece.index, content, None, logprobs))
            logprobs = None
        return b"".join(chunks)

    def _chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event(self._envelope([choice]) | ({"usage": None} if self._include_usage else {}))

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }


class _Answer:
    """What one answer's text is read as."""

    def __init__(self, tools: Tools) -> None:
        self._is_one_call = tools.calling is Calling.ONE
        self._name: str | None = tools.named  # of the one call, until it is told
        self.parser: ToolCallParser | None = None
        if tools.calling in (Calling.MAYBE, Calling.ALWAYS):
            self.parser = ToolCallParser(tools.names, tools.are_many, is_list=tools.calling is Calling.ALWAYS)

    def read(self, text: str) -> Iterator[Delta]:
        """What `text` brings."""
        if self.parser is not None:
            yield from self.parser.push(text)
        elif self._is_one_call:
            name, self._name = self._name, None
            if name is not None:
                yield CallDelta(0, name)
            if text:
                yield CallDelta(0, None, text)
        elif text:
            yield Text(text)

    def finish(self) -> Iterator[Delta]:
        """What was held back."""
        if self.parser is not None:
            yield from self.parser.finish()

    def finish_reason(self, reason: str) -> str:
        """How it ended, in OpenAI's words."""
        has_calls = self.parser is not None and self.parser.num_calls > 0
        return "tool_calls" if has_calls and reason == "stop" else reason


def _delta(delta: Delta) -> dict[str, Any]:
    if isinstance(delta, Text):
        return {"content": delta.text}
    call: dict[str, Any] = {"index": delta.index}
    function: dict[str, Any] = {"arguments": delta.arguments}
    if delta.name is not None:
        call |= {"id": new_call_id(), "type": "function"}
        function = {"name": delta.name} | function
    return {"tool_calls": [call | {"function": function}]}


def _joined(deltas: Iterable[CallDelta]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        if delta.name is not None:
            function = {"name": delta.name, "arguments": ""}
            calls[delta.index] = {"id": new_call_id(), "type": "function", "function": function}
        calls[delta.index]["function"]["arguments"] += delta.arguments
    return list(calls.values())


def new_call_id() -> str:
    """An id for a call; Mistral's templates want nine letters and digits, and take the last nine of these."""
    return f"call_{uuid.uuid4().hex[:24]}"
