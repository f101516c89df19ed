"""Abilities: what of a request an engine of TensorRT-LLM can honour.

The library ignores what it has no code for: under a sampler without penalties, a penalised request is answered as if it
had asked for none. So whatever is not honoured is refused here, by the release, the flow, the sampler and the way that
the engine speculates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trierarch.builder.manifest import Flow, TensorRTLLM
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.tensorrt_llm.arguments import decoding_type
from trierarch.python_backend.executors.tensorrt_llm.release import RELEASES
from trierarch.python_backend.request import SamplingParams

_REBUILD: Final = "rebuild the engine with"
_LEAVE: Final = "leave it out"

_NO_PROMPT_LOGPROBS: Final = (
    f"TensorRT-LLM tells the likeliest tokens of each position of a prompt, and not the prompt's own; {_LEAVE}"
)
_NO_LOGITS: Final = f"logits are not passed on; ask for logprobs, or {_LEAVE}"
_NO_DRAFTS: Final = "--speculation none"
_NOT_GATHERED: Final = f"a TensorRT engine keeps no logits here; {_REBUILD} --tensorrt-llm-flow pytorch, or {_LEAVE}"
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
    f"the sampler of this engine has none; {_REBUILD} {_NO_DRAFTS}, for another release than 1.1, or {_LEAVE}"
)
_NOT_BY_TORCH: Final = ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_p", "seed")
_LACKING: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "1.0": (_SAMPLER, (*_NOT_BY_TORCH, "min_tokens", "logit_bias", "bad_words")),
    "1.1": (_SAMPLER, (*_NOT_BY_TORCH, "min_tokens", "logit_bias", "bad_words")),
    "1.2": (_SAMPLER, _NOT_BY_TORCH),
    "1.3": ("", ()),
}
"""Release -> what its TorchSampler, the default of the PyTorch flow, has no code for, and the remedy."""

_GREEDY_DRAFTING: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(("1.0", "1.1", "1.2"), frozenset({"mtp", "eagle", "eagle3"})),
    "1.3": frozenset({"mtp", "eagle", "eagle3", "drafttarget", "pard", "dflash", "dspark", "sa"}),
}
"""Release -> ways to speculate in which target and drafter are one model, which then draws the likeliest tokens alone
unless `allow_advanced_sampling`, which 1.3 has."""

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

    def check(self, sampling: SamplingParams) -> None:
        """Raise InvalidRequest for the first field that asks for what the engine does not do."""
        if self.greedy_alone is not None and not sampling.is_greedy:
            raise InvalidRequest("temperature", sampling.temperature, self.greedy_alone)
        for field, remedy in self.refused.items():
            value = getattr(sampling, field)
            if value == getattr(_NEUTRAL, field) or (field in _ONLY_SAMPLED and sampling.is_greedy):
                continue
            raise InvalidRequest(field, value, remedy)


def abilities_of(record: TensorRTLLM) -> Abilities:
    """What the engine of a record can do."""
    arguments = record.llm_args
    refused = {
        "prompt_logprobs": _NO_PROMPT_LOGPROBS,
        "return_context_logits": _NO_LOGITS,
        "return_generation_logits": _NO_LOGITS,
    }
    if arguments.get("guided_decoding_backend") is None:
        refused["guide"] = _NO_GUIDES
    if record.flow is Flow.ENGINE and not arguments.get("gather_generation_logits"):
        refused["logprobs"] = _NOT_GATHERED
    if _is_torch_sampled(record):
        remedy, fields = _LACKING[record.version]
        refused |= dict.fromkeys(fields, remedy)
    kv_cache = arguments.get("kv_cache_config")
    shares_prefixes = not isinstance(kv_cache, dict) or kv_cache.get("enable_block_reuse", True)
    return Abilities(
        refused=refused,
        greedy_alone=_greedy_alone(record),
        cache_salt=None if RELEASES[record.version].takes_cache_salt or not shares_prefixes else _NO_SALT,
    )


def _is_torch_sampled(record: TensorRTLLM) -> bool:
    """Whether the sampler is TorchSampler; the other is the engine flow's, in C++."""
    arguments = record.llm_args
    is_chosen = arguments.get("enable_trtllm_sampler") or arguments.get("sampler_type") == "TRTLLMSampler"
    return record.flow is Flow.PYTORCH and not is_chosen


def _greedy_alone(record: TensorRTLLM) -> str | None:
    if record.flow is Flow.ENGINE:
        return None
    if decoding_type(record) in _GREEDY_DRAFTING[record.version] and not _is_apart(record):
        return f"this engine speculates in a way that only takes the likeliest tokens; {_GREEDY}"
    if (
        record.version in ("1.0", "1.1")
        and _is_torch_sampled(record)
        and not record.llm_args.get("enable_mixed_sampler")
    ):
        return f"this engine only takes the likeliest tokens; {_GREEDY}, or {_REBUILD} {_NO_DRAFTS}, for another release than 1.1"
    return None


def _is_apart(record: TensorRTLLM) -> bool:
    """Whether a drafter that could be one with its target samples all the same."""
    config = record.llm_args.get("speculative_config")
    if not isinstance(config, dict):
        return True
    if config.get("allow_advanced_sampling"):
        return True
    return config.get("eagle3_one_model") is False or config.get("mtp_eagle_one_model") is False
