"""What of a request an engine for TensorRT-LLM honours, by release and flow: a part of docs/contract.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from trierarch.builder.manifest import Flow, TensorRTLLM
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.tensorrt_llm.abilities import abilities_of
from trierarch.python_backend.request import Guide, GuideKind, SamplingParams

COLUMNS: Final = (
    *((release, flow) for release in ("1.0", "1.1", "1.2") for flow in (Flow.ENGINE, Flow.PYTORCH)),
    ("1.3", Flow.PYTORCH),
)
"""Releases, and the flows that each has."""
OPTIONS: Final = (
    (),
    ("--gather-logits",),
    ("--no-prefix-caching",),
    ("--gather-logits", "--no-prefix-caching"),
)
"""Of `trierarch build`, the fewest first."""
_SAMPLED: Final = SamplingParams(max_tokens=2, top_k=5)
_ROWS: Final[Mapping[str, Mapping[str, Any]]] = {
    "runtime_top_k, runtime_top_p, temperature": {},
    "seed": {"seed": 1},
    "min_p": {"min_p": 0.1},
    "repetition_penalty, presence_penalty, frequency_penalty": {"repetition_penalty": 1.1},
    "min_tokens": {"min_tokens": 1},
    "embedding_bias": {"logit_bias": {1: 1.0}},
    "bad_words_list, of one token each": {"bad_words": ((1,),)},
    "return_log_probs": {"logprobs": 0},
    "num_log_probs above 0, and beams": {"logprobs": 2},
    "num_prompt_log_probs": {"prompt_logprobs": 0},
    "return_context_logits": {"return_context_logits": True},
    "return_generation_logits": {"return_generation_logits": True},
    "guided_decoding_guide": {"guide": Guide(GuideKind.JSON)},
}
"""Tensors -> what they make of a request's sampling."""
_SALT: Final = "cache_salt"


def record_of(release: str, flow: Flow, options: tuple[str, ...]) -> TensorRTLLM:
    """As the builder records an engine that does not speculate, as far as abilities go by it."""
    gathers = "--gather-logits" in options
    llm_args: dict[str, Any] = {"kv_cache_config": {"enable_block_reuse": "--no-prefix-caching" not in options}}
    if gathers:
        llm_args["gather_generation_logits"] = True
    if flow is Flow.ENGINE:
        build_config: dict[str, Any] = {"gather_context_logits": True} if gathers else {}
        return TensorRTLLM(version=release, flow=flow, model="", llm_args=llm_args, build_config=build_config)
    llm_args["guided_decoding_backend"] = "xgrammar"
    if release == "1.0":
        llm_args["enable_trtllm_sampler"] = True
    elif release != "1.3":
        llm_args["sampler_type"] = "TRTLLMSampler"
    return TensorRTLLM(version=release, flow=flow, model="", llm_args=llm_args)


def abilities_rows() -> Iterator[tuple[str, ...]]:
    """Tensors, and for each of COLUMNS whether they are honoured, or with which options of the build."""
    for tensors, changes in _ROWS.items():
        sampling = replace(_SAMPLED, **changes)
        yield tensors, *(_cell(release, flow, sampling) for release, flow in COLUMNS)
    yield _SALT, *(_cell(release, flow, None) for release, flow in COLUMNS)


def _cell(release: str, flow: Flow, sampling: SamplingParams | None) -> str:
    for options in OPTIONS:
        if _is_honoured(record_of(release, flow, options), sampling):
            return f"with `{' '.join(options)}`" if options else "honoured"
    return "refused"


def _is_honoured(record: TensorRTLLM, sampling: SamplingParams | None) -> bool:
    """Of a request with `sampling`, or with a salt."""
    abilities = abilities_of(record)
    if sampling is None:
        return abilities.cache_salt is None
    try:
        abilities.check(sampling)
    except InvalidRequest:
        return False
    return True
