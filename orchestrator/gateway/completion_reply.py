"""CompletionReply: pieces of text as text completions, whole or as chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from trierarch.orchestrator.gateway.piece import Piece, TokenLogprob
from trierarch.orchestrator.gateway.reply import TextChunks, TotalUsage, WholeAnswer, completion_logprobs, event


class CompletionReply:
    """The reply to one or several prompts. Answer `i` of prompt `p` is choice `p * n + i`."""

    def __init__(
        self,
        *,
        reply_id: str,
        created: int,
        model: str,
        fingerprint: str | None,
        n: int,
        echoed: Sequence[str],
        has_logprobs: bool,
        include_usage: bool,
    ) -> None:
        """`echoed`: what stands before each answer, by prompt; empty strings where nothing does."""
        self._id, self._created, self._model, self._fingerprint = reply_id, created, model, fingerprint
        self._n, self._echoed = n, echoed
        self._has_logprobs = has_logprobs
        self._include_usage = include_usage
        self._lengths: dict[int, int] = {}  # choice -> characters that are told of it
        self._prompt_logprobs: dict[int, Sequence[TokenLogprob | None]] = {}  # prompt -> what is told of its tokens
        self._texts = TextChunks(lambda choice, text: self._chunk(choice, text, None))

    def events(self, prompt: int, piece: Piece) -> bytes:
        """See Reply."""
        choice = prompt * self._n + piece.index
        length = self._lengths.get(choice)
        text = piece.text if length is not None else self._echoed[prompt] + piece.text
        length = length or 0
        self._lengths[choice] = length + len(text)
        if not piece.logprobs:
            told = self._texts.of(choice, text) if text else b""  # the most of them
        else:
            of_prompt = () if length else self._of_prompt(prompt, piece.prompt_logprobs)
            logprobs = self._logprobs(of_prompt, piece.logprobs, self._echoed[prompt], length)
            told = self._chunk(choice, text, None, logprobs)
        return told if piece.finish_reason is None else told + self._chunk(choice, "", piece.finish_reason)

    def usage_event(self, usage: TotalUsage) -> bytes:
        """See Reply."""
        return event(self._envelope([]) | {"usage": usage.content()})

    def whole(self, answers: Sequence[WholeAnswer], usage: TotalUsage) -> bytes:
        """See Reply."""
        choices = []
        for answer in answers:
            echoed = self._echoed[answer.prompt]
            logprobs = None
            if self._has_logprobs:
                of_prompt = self._of_prompt(answer.prompt, answer.prompt_logprobs)
                logprobs = self._logprobs(of_prompt, answer.logprobs, echoed, 0)
            choices.append(
                {
                    "index": answer.prompt * self._n + answer.index,
                    "text": echoed + "".join(answer.text),
                    "logprobs": logprobs,
                    "finish_reason": answer.finish_reason,
                }
            )
        return json.dumps(self._envelope(choices) | {"usage": usage.content()}).encode()

    def _of_prompt(self, prompt: int, told: Sequence[TokenLogprob | None]) -> Sequence[TokenLogprob | None]:
        """The prompt's log-probs, which the model tells with its first answer alone."""
        if told:
            self._prompt_logprobs[prompt] = told
        return self._prompt_logprobs.get(prompt, ()) if self._echoed[prompt] else ()

    def _logprobs(
        self,
        of_prompt: Sequence[TokenLogprob | None],
        of_answer: Sequence[TokenLogprob],
        echoed: str,
        offset: int,
    ) -> dict[str, Any]:
        # The prompt's first token has no log-prob, and what it says is what the others leave of the prompt.
        rest = sum(len(item.text) for item in of_prompt if item is not None)
        first = [echoed[: max(0, len(echoed) - rest)]]
        return completion_logprobs([*of_prompt, *of_answer], first, offset)

    def _chunk(
        self, choice: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        told = {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return event(self._envelope([told]) | ({"usage": None} if self._include_usage else {}))

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }
