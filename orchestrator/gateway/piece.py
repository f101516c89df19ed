"""Piece: what one response of the model carries of one answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trierarch.orchestrator.gateway.tensors import all_integers, first_text, outputs_of


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token as OpenAI's log-probs tell it."""

    text: str
    data: bytes
    """Its bytes: one token need not be a whole character."""
    logprob: float
    top: tuple[tuple[str, bytes, float], ...]
    """(text, bytes, log-probability) of the likeliest tokens, likeliest first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The next text of an answer, and with the last one how it ended."""

    index: int
    text: str
    finish_reason: str | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


def read_piece(response: Any) -> Piece | None:
    """The piece in a ModelInferResponse; None where it only says that it is the last."""
    contents = response.raw_output_contents
    if not contents:
        return None
    if len(contents) == 1 and response.outputs[0].name == "text_output":  # the most of them
        return Piece(0, first_text(contents[0]))
    outputs = outputs_of(response)
    index = all_integers(outputs["sequence_index"])[0] if "sequence_index" in outputs else 0
    usage = json.loads(first_text(outputs["usage"])) if "usage" in outputs else None
    names: Mapping[str, str] = json.loads(first_text(outputs["token_bytes"])) if "token_bytes" in outputs else {}
    return Piece(
        index,
        first_text(outputs["text_output"]) if "text_output" in outputs else "",
        first_text(outputs["finish_reason"]) if "finish_reason" in outputs else None,
        None if usage is None else Usage(usage["prompt_tokens"], usage["completion_tokens"], usage["cached_tokens"]),
        tuple(item for item in _logprobs(outputs, "top_log_probs", names) if item is not None),
        tuple(_logprobs(outputs, "prompt_log_probs", names)),
    )


def _logprobs(outputs: Mapping[str, bytes], name: str, names: Mapping[str, str]) -> Sequence[TokenLogprob | None]:
    if name not in outputs:
        return ()
    items = json.loads(first_text(outputs[name]))
    return [None if item is None else _logprob(item, names) for item in items]


def _logprob(item: Mapping[str, Any], names: Mapping[str, str]) -> TokenLogprob:
    def said(token_id: int) -> tuple[str, bytes]:
        data = names[str(token_id)].encode("latin-1")
        return data.decode("utf-8", errors="replace"), data

    top = tuple((*said(token_id), logprob) for token_id, logprob in item["top"])
    return TokenLogprob(*said(item["token_id"]), item["logprob"], top)
