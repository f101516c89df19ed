"""Piece: what one response of the model carries of one answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trierarch.orchestrator.gateway.tensors import all_integers, all_texts, first_text, outputs_of


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


def read_pieces(response: Any) -> Sequence[Piece]:
    """The pieces in a ModelInferResponse: one, or one of each beam; none where it only says that it is the last."""
    contents = response.raw_output_contents
    if not contents:
        return ()
    if len(contents) == 1 and response.outputs[0].name == "text_output":  # the most of them
        return (Piece(0, first_text(contents[0])),)
    outputs = outputs_of(response)
    if "num_output_tokens" in outputs:
        return _beams(outputs)
    index = all_integers(outputs["sequence_index"])[0] if "sequence_index" in outputs else 0
    names: Mapping[str, str] = json.loads(first_text(outputs["token_bytes"])) if "token_bytes" in outputs else {}
    piece = Piece(
        index,
        first_text(outputs["text_output"]) if "text_output" in outputs else "",
        first_text(outputs["finish_reason"]) if "finish_reason" in outputs else None,
        _usage(outputs) if "usage" in outputs else None,
        tuple(item for item in _logprobs(outputs, "top_log_probs", names) if item is not None),
        tuple(_logprobs(outputs, "prompt_log_probs", names)),
    )
    return (piece,)


def _beams(outputs: Mapping[str, bytes]) -> Sequence[Piece]:
    """Of the answers of a beam search, the best first; the first one is told to have cost what all of them did."""
    usage = replace(_usage(outputs), completion_tokens=all_integers(outputs["num_output_tokens"])[0])
    answers = zip(all_texts(outputs["text_output"]), all_texts(outputs["finish_reason"]), strict=True)
    return [Piece(index, text, reason, None if index else usage) for index, (text, reason) in enumerate(answers)]


def _usage(outputs: Mapping[str, bytes]) -> Usage:
    told = json.loads(first_text(outputs["usage"]))
    return Usage(told["prompt_tokens"], told["completion_tokens"], told["cached_tokens"])


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
