"""TextRequest and TextDelta: what a client asks for in text, and what streams back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trierarch.python_backend.beams.params import BeamParams
from trierarch.python_backend.errors import InvalidRequest, ServingError
from trierarch.python_backend.request import (
    FinishReason,
    Retention,
    SamplingParams,
    SpeculationParams,
    TokenLogprob,
    Usage,
)
from trierarch.python_backend.text.chat import Chat

if TYPE_CHECKING:
    from trierarch.python_backend.request import Logits


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """One ask, in text or in token ids. Checked on construction as far as that needs no tokenizer."""

    request_id: str
    """Unique among live requests."""
    prompt: str | bytes | tuple[int, ...]
    """Text (bytes are UTF-8), or token ids, which are taken as they are."""
    sampling: SamplingParams
    beams: BeamParams | None = None
    """The `sampling.n` best of a beam search in place of drawing; what `sampling` says of drawing changes nothing then."""
    stop: tuple[str, ...] = ()
    """The output ends where one of these is complete; see StopStrings. They wait for `sampling.min_tokens`."""
    bad_words: tuple[str, ...] = ()
    """Text that the output never completes, with a space before it or without; beside `sampling.bad_words`."""
    bias_words: tuple[tuple[str, float], ...] = ()
    """Added to the logits of all tokens of the word, with a space before it or without; beside `logit_bias`."""
    is_chat: bool = False
    """Whether a text prompt is a user's message, to be put into the engine's chat template."""
    chat: Chat | None = None
    """Messages for the chat template, in the place of `prompt`, which is empty then."""
    add_special_tokens: bool = True
    """Whether encoding a text prompt adds what the tokenizer adds, such as a BOS; a chat template adds its own."""
    skip_special_tokens: bool = True
    """Whether special tokens are left out of the text; the token ids always have them."""
    include_stop: bool = False
    """Whether the stop string that ended the output is shown."""
    fit_max_tokens: bool = False
    """Whether `sampling.max_tokens` is cut to what fits behind the prompt, in place of a refusal."""
    return_token_bytes: bool = False
    """Whether deltas say what the tokens of their log-probs stand for."""
    adapter: str = ""
    """Name of a registered adapter; empty is the base model."""
    cache_salt: str = ""
    priority: int = 0
    speculation: SpeculationParams = field(default_factory=SpeculationParams)
    retention: Retention | None = None
    timeout: float | None = None
    """Seconds from now until the request ends with TIMEOUT."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest for a value out of range."""
        if self.timeout is not None and not (math.isfinite(self.timeout) and self.timeout > 0):
            raise InvalidRequest("timeout", self.timeout, "must be a finite number of seconds above 0")
        for word, bias in self.bias_words:
            if math.isnan(bias) or bias == math.inf:
                raise InvalidRequest(f"bias_words[{word!r}]", bias, "must be a finite number, or -inf to ban the word")
        if self.chat is not None and (self.prompt or self.is_chat):
            raise InvalidRequest("messages", "given with another prompt", "send one of them")
        if self.is_chat and isinstance(self.prompt, tuple):
            raise InvalidRequest("is_chat", True, "token ids stand in no chat template; send the prompt as text")
        if self.beams is not None:
            self._check_beams(self.beams.width)

    def _check_beams(self, width: int) -> None:
        sampling = self.sampling
        if sampling.n > width:
            raise InvalidRequest("n", sampling.n, f"must be at most beam_width ({width}): no more answers are kept")
        # A step of a search is a request of its own, and a beam's steps are not known before the search is over.
        for name, is_asked in (
            ("return_context_logits", sampling.return_context_logits),
            ("return_generation_logits", sampling.return_generation_logits),
            ("return_embedding", sampling.return_embedding),
        ):
            if is_asked:
                raise InvalidRequest(
                    name, "given", f"does not go with beam_width {width}; leave it out, or send no beams"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """The next piece of one sequence's stream. The last has a `finish_reason` and `usage`; none follows it."""

    request_id: str
    index: int
    """Which of the request's `n` sequences."""
    text: str
    """May be empty: part of a character, or of what may become a stop string, is held back."""
    token_ids: tuple[int, ...] = ()
    """Tokens drawn since the last delta, up to the one that completed a stop string. Their text may come later."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each of `token_ids`, where asked."""
    cum_logprob: float | None = None
    """Of a searched beam, its end token included."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """With the first delta of index 0, where asked: one for each prompt token, None for the first."""
    context_logits: tuple[Logits, ...] | None = None
    """As TokenDelta has them; so `generation_logits` and `embedding`."""
    generation_logits: tuple[Logits, ...] | None = None
    embedding: Logits | None = None
    token_bytes: Mapping[int, bytes] = field(default_factory=dict)
    """Of every token that the log-probs name, where asked; what a character is made of need not be one by itself."""
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None
    """The stop string that ended the output; None for an end token or any other reason."""
    usage: Usage | None = None
    error: ServingError | None = None
    """Set with CANCELLED, TIMEOUT and ERROR."""
