"""A request's sampling in the words of TensorRT-LLM's SamplingParams.

Its LLM API takes stop and bad words as text alone, which it splits into tokens itself, and single tokens by id. Ours are
token ids. So stop words are found here, in what comes back (`stream.py`), and a bad word of one token is one that can
never be drawn; a longer one is refused. Of several end tokens the library knows one, and the others are found here too.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.tensorrt_llm.logits import LogitsAsked
from trierarch.python_backend.request import Guide, GuideKind, SamplingParams

_NO_END: Final = -1
_GUIDES: Final = {GuideKind.JSON_SCHEMA: "json", GuideKind.REGEX: "regex", GuideKind.EBNF: "grammar"}


def end_ids_of(sampling: SamplingParams, engine_end_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens that end the output."""
    return engine_end_ids if sampling.end_ids is None else sampling.end_ids


def is_likeliest_drawn(sampling: SamplingParams) -> bool:
    """Whether each token is the likeliest by the model's own logits: nothing changes them, and nothing is left to chance."""
    is_masked = sampling.bad_words or sampling.min_tokens or sampling.guide is not None
    return sampling.is_greedy and not (is_masked or sampling.logit_bias or _penalties(sampling))


def check_words(sampling: SamplingParams, engine_end_ids: tuple[int, ...]) -> None:
    """Raise InvalidRequest for words and limits that the library cannot keep."""
    for word in sampling.bad_words:
        if len(word) > 1:
            raise InvalidRequest(
                "bad_words", word, "TensorRT-LLM's LLM API bans single tokens alone; leave the longer ones out"
            )
    num_ends = len(end_ids_of(sampling, engine_end_ids))
    if sampling.min_tokens and (num_ends > 1 or sampling.stop_words):
        raise InvalidRequest(
            "min_tokens",
            sampling.min_tokens,
            f"TensorRT-LLM keeps back one end token and no stop words, and there are {num_ends} and "
            f"{len(sampling.stop_words)}; send one in end_ids and no stop words, or leave it out",
        )


def sampling_arguments(
    sampling: SamplingParams,
    index: int,
    engine_end_ids: tuple[int, ...],
    pad_id: int,
    vocab_size: int,
    logits: LogitsAsked,
) -> dict[str, Any]:
    """Keyword arguments of SamplingParams for sequence `index` of a request; `embedding_bias` is a NumPy array.

    Each sequence is a request of its own: the library would give all of a request's the same seed, could not end one of
    them alone, and takes no more than one where the likeliest token is taken.
    """
    end_ids = end_ids_of(sampling, engine_end_ids)
    arguments: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "end_id": end_ids[0] if end_ids else _NO_END,
        "pad_id": pad_id,
        "detokenize": False,
        "return_perf_metrics": True,
        **_drawing(sampling, index),
        **_penalties(sampling),
    }
    if sampling.logit_bias or sampling.bad_words:
        arguments["embedding_bias"] = _bias(sampling, vocab_size)
    if logits.of_prompt:
        arguments["return_context_logits"] = True
    if logits.of_output:
        arguments["return_generation_logits"] = True
    elif sampling.logprobs is not None:
        arguments["logprobs"] = max(1, sampling.logprobs)  # 0 is off there
    if sampling.guide is not None:
        arguments["guided_decoding"] = _guide(sampling.guide)
    return arguments


def _drawing(sampling: SamplingParams, index: int) -> dict[str, Any]:
    """The library takes the likeliest token unless top_k or top_p says otherwise, whatever the temperature."""
    if sampling.is_greedy:
        return {"top_k": 1}
    # Without a seed the library takes the same one for every request.
    seed = secrets.randbits(64) if sampling.seed is None else (sampling.seed + index) % 2**64
    drawing: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    if sampling.min_p:
        drawing["min_p"] = sampling.min_p
    return drawing


def _penalties(sampling: SamplingParams) -> dict[str, Any]:
    penalties = {
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
    }
    return {name: value for name, (value, neutral) in penalties.items() if value != neutral}


def _bias(sampling: SamplingParams, vocab_size: int) -> npt.NDArray[np.float32]:
    bias = np.zeros(vocab_size, np.float32)
    for token, value in sampling.logit_bias.items():
        bias[token] = value
    for word in sampling.bad_words:
        bias[word[0]] = -np.inf
    return bias


def _guide(guide: Guide) -> dict[str, Any]:
    return {"json_object": True} if guide.kind is GuideKind.JSON else {_GUIDES[guide.kind]: guide.text}
