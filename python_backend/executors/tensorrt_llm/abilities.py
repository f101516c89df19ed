"""Abilities: what of a request an engine of TensorRT-LLM can honour.

The library ignores what it has no code for: under a sampler without penalties, a penalised request is answered as if it
had asked for none. So whatever is not honoured is refused here, by the release, the flow, the sampler and the way that
the engine speculates.

Read in TensorRT-LLM's tensorrt_llm/_torch/pyexecutor/{sampler,handle_context_logits}.py, _torch/speculative/mtp.py,
cpp/tensorrt_llm/batch_manager/handleContextLogits.cpp, tests/unittest/_torch/sampler/test_return_logits.py, release notes of 1.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from trierarch.builder.manifest import Flow, TensorRTLLM
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.tensorrt_llm.arguments import decoding_type
from trierarch.python_backend.executors.tensorrt_llm.release import RELEASES
from trierarch.python_backend.request import SamplingParams

_REBUILD: Final = "rebuild the engine with"
_LEAVE: Final = "leave it out"

_NO_STATES: Final = f"TensorRT-LLM tells no hidden states; {_LEAVE}"
_NOT_EDITED: Final = (
    "beams that a guide, a bias or penalties rank need candidates that TensorRT-LLM does not tell; leave these out, or send "
    "no beams"
)
_NO_DRAFTS: Final = "--speculation none"
_NOT_GATHERED: Final = f"this engine keeps no logits; {_REBUILD} --gather-logits, or {_LEAVE}"
_NOT_BESIDE_DRAFTS: Final = f"TensorRT-LLM tells none where tokens are guessed; {_REBUILD} {_NO_DRAFTS}, or {_LEAVE}"
_NO_PROMPT_LOGITS: Final = (
    f"the PyTorch flow tells no logits of prompts before 1.1; {_REBUILD} --tensorrt-llm-flow engine and --gather-logits, or "
    f"{_LEAVE}"
)
_NOT_BY_ITS_SAMPLER: Final = (
    f"this engine's sampler keeps no logits of prompts; {_REBUILD} --tensorrt-llm-sampler trtllm, or {_LEAVE}"
)
_REUSED: Final = (
    f"TensorRT-LLM computes no logits of blocks that it reuses, and before 1.2 no request can do without; {_REBUILD} "
    f"--no-prefix-caching, or {_LEAVE}"
)
_DRAWN_ALONE: Final = (
    f"this engine's sampler tells the log-prob of the drawn token alone; send 0, or {_REBUILD} --gather-logits"
)
_NO_GUIDES: Final = (
    f"this engine guides no output, as TensorRT engines and some that speculate; {_REBUILD} --tensorrt-llm-flow pytorch and "
    f"{_NO_DRAFTS}, or {_LEAVE}"
)
_NO_SALT: Final = (
    "TensorRT-LLM keeps no prefixes apart before 1.2; rebuild the engine for 1.2 or later, or with enable_block_reuse false in "
    "kv_cache_config"
)
_GREEDY: Final = "send 0 for the likeliest tokens"

_SAMPLER: Final = (
    f"the sampler of this engine has none; {_REBUILD} {_NO_DRAFTS} and --tensorrt-llm-sampler trtllm, or {_LEAVE}"
)
_NOT_BY_TORCH: Final = ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_p", "seed")
_LACKING: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "1.0": (_SAMPLER, (*_NOT_BY_TORCH, "min_tokens", "logit_bias", "bad_words")),
    "1.1": (_SAMPLER, (*_NOT_BY_TORCH, "min_tokens", "logit_bias", "bad_words")),
    "1.2": (_SAMPLER, _NOT_BY_TORCH),
    "1.3": ("", ()),
}
"""Release -> what its TorchSampler, the default of the PyTorch flow, has no code for, and the remedy."""

_TELLS_LIKELIEST: Final = ("1.1", "1.2", "1.3")
"""Releases whose TorchSampler tells the log-probs of the likeliest tokens; TRTLLMSampler never does."""

_ONE_MODEL: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(("1.0", "1.1", "1.2"), frozenset({"mtp", "eagle", "eagle3"})),
    "1.3": frozenset({"mtp", "eagle", "eagle3", "drafttarget", "pard", "dflash", "dspark", "sa"}),
}
"""Release -> ways to speculate in which target and drafter are one model, which then draws the likeliest tokens alone
unless `allow_advanced_sampling`, which 1.3 has. It tells no log-probs: up to 1.2 it ends the engine that is asked for some."""

_NEUTRAL: Final = SamplingParams(max_tokens=1)
_ONLY_SAMPLED: Final = frozenset({"seed", "min_p"})
"""Of no effect where the likeliest token is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """Of one engine."""

    refused: Mapping[str, str]
    """Field of SamplingParams -> why it must say nothing, and what to do."""
    greedy_alone: str | None = None
    """Why tokens are not sampled, and what to do."""
    cache_salt: str | None = None
    """Why prefixes cannot be kept apart, and what to do."""
    likeliest: str | None = None
    """Why log-probs of other tokens than the drawn one are not told, and what to do."""
    gathers_logits: bool = False
    """Whether it keeps what tokens are drawn from."""
    salts_prompts: bool = False
    """Whether a request that is told logits of its prompt needs a salt of its own, so that all of it is computed."""

    def check(self, sampling: SamplingParams) -> None:
        """Raise InvalidRequest for the first field that asks for what the engine does not do."""
        if self.greedy_alone is not None and not sampling.is_greedy:
            raise InvalidRequest("temperature", sampling.temperature, self.greedy_alone)
        for field, remedy in self.refused.items():
            value = getattr(sampling, field)
            if value == getattr(_NEUTRAL, field) or (field in _ONLY_SAMPLED and sampling.is_greedy):
                continue
            raise InvalidRequest(field, value, remedy)
        if self.likeliest is not None and sampling.logprobs:
            raise InvalidRequest("logprobs", sampling.logprobs, self.likeliest)


def abilities_of(record: TensorRTLLM) -> Abilities:
    """What the engine of a record can do."""
    arguments = record.llm_args
    gathers = bool(arguments.get("gather_generation_logits")) and decoding_type(record) is None
    refused = _untold(record, gathers)
    refused["return_embedding"] = _NO_STATES
    refused["edited_logprobs"] = _NOT_EDITED
    if arguments.get("guided_decoding_backend") is None:
        refused["guide"] = _NO_GUIDES
    if _is_torch_sampled(record):
        remedy, fields = _LACKING[record.version]
        refused |= dict.fromkeys(fields, remedy)
    takes_salt, shares = RELEASES[record.version].takes_cache_salt, _shares_prefixes(record)
    return Abilities(
        refused=refused,
        greedy_alone=_greedy_alone(record),
        cache_salt=None if takes_salt or not shares else _NO_SALT,
        likeliest=None if gathers or _tells_likeliest(record) else _DRAWN_ALONE,
        gathers_logits=gathers,
        salts_prompts=shares,
    )


def _untold(record: TensorRTLLM, gathers: bool) -> dict[str, str]:
    """What is not told of logits, and what would only be told by them."""
    refused: dict[str, str] = {}
    if reason := _no_prompt_logits(record):
        refused |= dict.fromkeys(("prompt_logprobs", "return_context_logits"), reason)
    if decoding_type(record) is not None:
        refused["return_generation_logits"] = _NOT_BESIDE_DRAFTS
    elif not gathers:
        refused["return_generation_logits"] = _NOT_GATHERED
    if record.flow is Flow.ENGINE and not gathers:
        refused["logprobs"] = _NOT_GATHERED
    if _is_one_model(record):
        refused["logprobs"] = _NOT_BESIDE_DRAFTS
    return refused


def _no_prompt_logits(record: TensorRTLLM) -> str | None:
    """Why none are told of a prompt; None where they are, whole."""
    if decoding_type(record) is not None:
        return _NOT_BESIDE_DRAFTS
    if record.flow is Flow.ENGINE:
        if not (record.build_config or {}).get("gather_context_logits"):
            return _NOT_GATHERED
    elif record.version == "1.0":
        return _NO_PROMPT_LOGITS
    elif record.version == "1.1" and _is_torch_sampled(record):
        return _NOT_BY_ITS_SAMPLER
    is_whole = RELEASES[record.version].takes_cache_salt or not _shares_prefixes(record)
    return None if is_whole else _REUSED


def _shares_prefixes(record: TensorRTLLM) -> bool:
    kv_cache = record.llm_args.get("kv_cache_config")
    return not isinstance(kv_cache, dict) or bool(kv_cache.get("enable_block_reuse", True))


def _tells_likeliest(record: TensorRTLLM) -> bool:
    return _is_torch_sampled(record) and record.version in _TELLS_LIKELIEST


def _is_torch_sampled(record: TensorRTLLM) -> bool:
    """Whether the sampler is TorchSampler; the other is the engine flow's, in C++."""
    arguments = record.llm_args
    is_chosen = arguments.get("enable_trtllm_sampler") or arguments.get("sampler_type") == "TRTLLMSampler"
    return record.flow is Flow.PYTORCH and not is_chosen


def _greedy_alone(record: TensorRTLLM) -> str | None:
    if record.flow is Flow.ENGINE:
        return None
    if _is_one_model(record) and not _speculation(record).get("allow_advanced_sampling"):
        return f"this engine speculates in a way that only takes the likeliest tokens; {_GREEDY}"
    if (
        record.version in ("1.0", "1.1")
        and _is_torch_sampled(record)
        and not record.llm_args.get("enable_mixed_sampler")
    ):
        return (
            f"this engine only takes the likeliest tokens; {_GREEDY}, or {_REBUILD} {_NO_DRAFTS} and --tensorrt-llm-sampler "
            "trtllm"
        )
    return None


def _is_one_model(record: TensorRTLLM) -> bool:
    """Whether it guesses by a drafter that is one with its target."""
    config = _speculation(record)
    is_apart = config.get("eagle3_one_model") is False or config.get("mtp_eagle_one_model") is False
    return record.flow is Flow.PYTORCH and decoding_type(record) in _ONE_MODEL[record.version] and not is_apart


def _speculation(record: TensorRTLLM) -> Mapping[str, JsonValue]:
    config = record.llm_args.get("speculative_config")
    return config if isinstance(config, dict) else {}
