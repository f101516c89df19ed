"""Reply: one sequence's deltas gathered into pieces, each piece a response."""

from __future__ import annotations

from dataclasses import dataclass, field

from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.text.text_request import TextDelta
from trierarch.python_backend.triton.responses import Array, Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyOptions:
    """How a row's sequences are told to the client."""

    is_text: bool
    """Whether the request came through the text door; errors then name the text tensors."""
    is_streaming: bool
    """A response for each delta, or one for the whole."""
    echo: bool
    """Whether the prompt precedes the output. Never while streaming."""
    outputs: frozenset[str]
    """Names of the tensors to fill."""
    batch_index: int = 0
    tokenize_only: bool = False
    """Whether the prompt's tokens are all that is asked for."""


@dataclass(slots=True)
class Reply:
    """Gathers one sequence. What no response has carried yet is in the fields that begin with an underscore."""

    options: ReplyOptions
    sequence_index: int
    prompt_token_ids: tuple[int, ...]
    prompt_text: str
    _token_ids: list[int] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)
    _prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    _context_logits: tuple[Array, ...] = ()
    _generation_logits: list[Array] = field(default_factory=list)
    _embedding: Array | None = None
    _token_bytes: dict[int, bytes] = field(default_factory=dict)
    _cum_log_prob: float = 0.0

    def add(self, delta: TextDelta) -> Piece | None:
        """Take a delta; the piece that is to be sent now, if any. The last delta always makes one."""
        self._token_ids += delta.token_ids
        self._text.append(delta.text)
        self._logprobs += delta.logprobs or ()
        self._cum_log_prob += sum(item.logprob for item in delta.logprobs or ())
        self._prompt_logprobs = delta.prompt_logprobs or self._prompt_logprobs
        self._context_logits = delta.context_logits or self._context_logits
        self._generation_logits += delta.generation_logits or ()
        self._embedding = self._embedding if delta.embedding is None else delta.embedding
        self._token_bytes |= delta.token_bytes
        is_last = delta.finish_reason is not None
        # Tokens whose text is still held back wait for it where the client sees only the text.
        has_news = bool(self._token_ids if "output_ids" in self.options.outputs else delta.text)
        return self._take(delta) if is_last or (self.options.is_streaming and has_news) else None

    def _take(self, delta: TextDelta) -> Piece:
        echo = self.options.echo
        piece = Piece(
            token_ids=(*(self.prompt_token_ids if echo else ()), *self._token_ids),
            num_new_tokens=len(self._token_ids),
            text=(self.prompt_text if echo else "") + "".join(self._text),
            logprobs=tuple(self._logprobs),
            cum_log_prob=self._cum_log_prob if delta.cum_logprob is None else delta.cum_logprob,
            prompt_logprobs=self._prompt_logprobs,
            context_logits=self._context_logits,
            generation_logits=tuple(self._generation_logits),
            embedding=self._embedding,
            token_bytes=self._token_bytes,
            num_prompt_tokens=len(self.prompt_token_ids),
            batch_index=self.options.batch_index,
            sequence_index=self.sequence_index,
            usage=delta.usage,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason or "",
        )
        self._token_ids, self._text, self._logprobs, self._prompt_logprobs = [], [], [], None
        self._context_logits, self._generation_logits, self._embedding = (), [], None
        self._token_bytes = {}
        return piece
