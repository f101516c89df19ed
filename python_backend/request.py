"""What a client asks of an executor and what streams back: token ids in, token ids out.

Text, stop strings and chat templates live above (`text/`), Triton's tensors in `triton/`. An executor sees only this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.errors import InvalidRequest, ServingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]
    """(vocab): what the model gave for one next token, before anything that SamplingParams asks for."""


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """An end token, a stop token, or (decided above the executor) a stop string."""
    LENGTH = "length"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    ERROR = "error"


class GuideKind(StrEnum):
    """The languages that an output can be held to, as the contract's `guided_decoding_guide_type` spells them."""

    JSON = "json"
    """Any JSON value; it has no text."""
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    EBNF = "ebnf_grammar"


@dataclass(frozen=True, slots=True)
class Guide:
    """A grammar that the whole output obeys: tokens that would leave it are never drawn."""

    kind: GuideKind
    text: str = ""

    def __post_init__(self) -> None:
        """Raise InvalidRequest where the text is missing, or given to JSON."""
        if (self.kind is GuideKind.JSON) == bool(self.text):
            remedy = "json takes no guide; leave it out" if self.text else f"a {self.kind.value} guide needs its text"
            raise InvalidRequest("guided_decoding_guide", self.text, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. Checked on construction; `check_vocabulary` needs the engine.

    Order of application: logit bias, repetition/presence/frequency penalties, bad words and min_tokens masks,
    temperature, top-k, top-p, min-p. Log-probs are of the model's own distribution, before all of these, unless
    `edited_logprobs`.
    """

    max_tokens: int
    min_tokens: int = 0
    """End and stop tokens are masked until this many tokens are out."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 is off; 1 is greedy."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output tokens: divides positive logits, multiplies negative ones (CTRL)."""
    presence_penalty: float = 0.0
    """Subtracted once for every token already in the output."""
    frequency_penalty: float = 0.0
    """Subtracted for each time a token is in the output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that are never completed."""
    seed: int | None = None
    """A seeded request draws the same tokens whatever it is batched with."""
    end_ids: tuple[int, ...] | None = None
    """Tokens that end the output and are not shown; None takes the engine's own, () never ends."""
    stop_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that end the output; they are shown."""
    logprobs: int | None = None
    """None is off; 0 the chosen token's; k also the k most likely ones'."""
    prompt_logprobs: int | None = None
    n: int = 1
    """Sequences drawn for the one prompt; each gets its own `index` and, if seeded, seed + index."""
    guide: Guide | None = None
    """Masked before everything else; its end is where end tokens are allowed."""
    return_context_logits: bool = False
    """Whether the logits behind each prompt token are told."""
    return_generation_logits: bool = False
    """Whether the logits that each output token was drawn from are told."""
    return_embedding: bool = False
    """Whether the prompt's embedding is told, by an engine that makes one."""
    edited_logprobs: bool = False
    """For one token alone: guide, bias, penalties and masks edit the log-probs, which are not scaled anew, and `logprobs`
    lists the likeliest tokens that are left. The token drawn is the model's own likeliest; it ends nothing."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest for a value out of range."""
        _at_least("max_tokens", self.max_tokens, 1)
        _at_least("min_tokens", self.min_tokens, 0)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens", self.min_tokens, f"must not be above max_tokens ({self.max_tokens})")
        _finite("temperature", self.temperature, low=0.0)
        _at_least("top_k", self.top_k, 0)
        _finite("top_p", self.top_p, low=0.0, high=1.0, low_open=True)
        _finite("min_p", self.min_p, low=0.0, high=1.0)
        _finite("repetition_penalty", self.repetition_penalty, low=0.0, low_open=True)
        _finite("presence_penalty", self.presence_penalty)
        _finite("frequency_penalty", self.frequency_penalty)
        for token, bias in self.logit_bias.items():
            if math.isnan(bias) or bias == math.inf:
                raise InvalidRequest(f"logit_bias[{token}]", bias, "must be a finite number, or -inf to ban the token")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise InvalidRequest("seed", self.seed, "must be between 0 and 2**64 - 1")
        for name, words in (("bad_words", self.bad_words), ("stop_words", self.stop_words)):
            if any(not word for word in words):
                raise InvalidRequest(name, (), "an entry is empty; leave it out")
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None and not 0 <= count <= MAX_LOGPROBS:
                raise InvalidRequest(name, count, f"must be between 0 and {MAX_LOGPROBS}")
        if not 1 <= self.n <= MAX_N:
            raise InvalidRequest("n", self.n, f"must be between 1 and {MAX_N}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def reweighs(self) -> bool:
        """Whether a guide, a bias or penalties change which tokens are the likeliest."""
        return self.guide is not None or bool(self.logit_bias) or self.has_penalties

    @property
    def has_penalties(self) -> bool:
        """Whether what was said so far changes how likely the next tokens are."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def tells_prompt(self) -> bool:
        """Whether anything is told of the prompt's tokens, so that all of them must be computed."""
        return self.prompt_logprobs is not None or self.return_context_logits or self.return_embedding

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InvalidRequest for a token id outside [0, vocab_size)."""
        groups = {
            "logit_bias": self.logit_bias,
            "bad_words": [token for word in self.bad_words for token in word],
            "stop_words": [token for word in self.stop_words for token in word],
            "end_ids": self.end_ids or (),
        }
        for name, tokens in groups.items():
            check_token_ids(name, tokens, vocab_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationParams:
    """How far a request lets tokens be guessed ahead. It narrows what the engine does and never changes what is drawn."""

    max_draft_tokens: int | None = None
    """Guessed in one step at most; 0 guesses nothing, None is the engine's limit."""
    drafters: tuple[DrafterKind, ...] | None = None
    """Who may be asked, of those the engine has; None is all of them."""
    draft_token_ids: tuple[int, ...] = ()
    """The caller's own guess of how the output begins; verified before anybody else's."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest for a value out of range, or options that contradict each other."""
        if self.max_draft_tokens is not None:
            _at_least("max_draft_tokens", self.max_draft_tokens, 0)
        if self.drafters == ():
            raise InvalidRequest(
                "drafters", (), "is empty; leave it out, or switch guessing off with max_draft_tokens 0"
            )
        if self.max_draft_tokens == 0 and (self.drafters or self.draft_token_ids):
            name = "drafters" if self.drafters else "draft_token_ids"
            raise InvalidRequest("max_draft_tokens", 0, f"contradicts {name}; leave one of them out")


@dataclass(frozen=True, slots=True)
class RetainedRange:
    """Prompt tokens whose cached blocks are to be kept before others'."""

    start: int
    end: int | None
    """Behind the last of them; None is the prompt's end."""
    priority: int
    duration_ms: int | None = None
    """For how long, from when nobody holds them; None is for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which of a request's cached blocks are to be evicted late: a hint, which no answer depends on.

    Priorities go from 0, evicted first, to MAX_RETENTION_PRIORITY. As TensorRT-LLM's KvCacheRetentionConfig.
    """

    ranges: tuple[RetainedRange, ...] = ()
    """Rising, none over another."""
    decode_priority: int | None = None
    """Of output tokens; None is the executor's own."""
    decode_duration_ms: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidRequest for a value out of range."""
        end: int | None = 0
        for each in self.ranges:
            if end is None or each.start < end:
                raise InvalidRequest(
                    "retention.start", each.start, "must not be negative, nor below the end of the range before it"
                )
            end = each.end
            if end is not None and end <= each.start:
                raise InvalidRequest("retention.end", end, f"must be above the range's start, {each.start}")
            _retained("retention.priority", each.priority, "retention.duration_ms", each.duration_ms)
        if self.decode_priority is not None or self.decode_duration_ms is not None:
            _retained(
                "retention.decode_priority",
                self.decode_priority or 0,
                "retention.decode_duration_ms",
                self.decode_duration_ms,
            )


MAX_LOGPROBS = 20
MAX_N = 64
MAX_RETENTION_PRIORITY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One admitted ask. Ids are unique among live requests; times are `time.monotonic()` seconds."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    answer_so_far: tuple[int, ...] = ()
    """Output tokens that are known when it comes: computed as a prompt is, and not told again. `max_tokens` counts them, and
    guides, penalties and words follow them as if they had been drawn."""
    adapter: Adapter | None = None
    """The version that its name meant when the request came; None is the base model."""
    cache_salt: str = ""
    """Requests share cached prefixes only with the same salt."""
    priority: int = 0
    """Higher runs first among waiting requests; waiting long enough overtakes any priority."""
    speculation: SpeculationParams = field(default_factory=SpeculationParams)
    retention: Retention | None = None
    arrival_time: float
    deadline: float | None = None
    is_continuation: bool = False
    """Whether it goes on with what was taken in before; a full queue does not refuse it then."""

    @property
    def adapter_digest(self) -> str:
        """What keys of caches have of the adapter; empty is the base model."""
        return "" if self.adapter is None else self.adapter.digest


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token and of its most likely rivals."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability), most likely first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a sequence cost, with its last delta. Times are `time.monotonic_ns()`."""

    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache when the sequence first ran."""
    num_output_tokens: int
    arrival_ns: int
    first_scheduled_ns: int
    first_token_ns: int
    last_token_ns: int
    num_new_blocks: int = 0
    """KV blocks taken fresh."""
    num_reused_blocks: int = 0
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDelta:
    """The next piece of one sequence's stream. The last has a `finish_reason` and `usage`; none follows it."""

    request_id: str
    index: int
    """Which of the request's `n` sequences."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each of `token_ids`, where asked."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """With the first delta of index 0, where asked: one for each prompt token, None for the first."""
    context_logits: tuple[Logits, ...] | None = None
    """With the first delta of index 0, where asked: those behind each prompt token."""
    embedding: Logits | None = None
    """With the first delta of index 0, where asked: (hidden), of whatever length its pooling gives it."""
    generation_logits: tuple[Logits, ...] | None = None
    """Where asked: those that each of `token_ids` was drawn from."""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: ServingError | None = None
    """Set with CANCELLED, TIMEOUT and ERROR."""


def check_token_ids(name: str, tokens: Iterable[int], vocab_size: int) -> None:
    """Raise InvalidRequest naming the first of `tokens` outside [0, vocab_size)."""
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(name, token, f"token ids of this engine lie between 0 and {vocab_size - 1}")


def _retained(name: str, priority: int, duration_name: str, duration_ms: int | None) -> None:
    if not 0 <= priority <= MAX_RETENTION_PRIORITY:
        raise InvalidRequest(name, priority, f"must be between 0 and {MAX_RETENTION_PRIORITY}")
    if duration_ms is not None:
        _at_least(duration_name, duration_ms, 1)


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise InvalidRequest(name, value, f"must be at least {low}")


def _finite(name: str, value: float, low: float = -math.inf, high: float = math.inf, low_open: bool = False) -> None:
    if not math.isfinite(value):
        raise InvalidRequest(name, value, "must be a finite number")
    if value < low or value > high or (low_open and value == low):
        bounds = f"above {low:g}" if low_open else f"at least {low:g}"
        raise InvalidRequest(name, value, f"must be {bounds}" + (f" and at most {high:g}" if high < math.inf else ""))
