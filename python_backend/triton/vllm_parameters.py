"""vLLM's sampling parameters: how each is read, and the tensors of `tensorrt_llm` that say the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.inputs import Array

SOURCE: Final = "sampling_parameters"
"""The tensor that has them."""
DEFAULT_MAX_TOKENS: Final = 16
_LEAST_TEMPERATURE: Final = 1e-5
"""Below it vLLM takes the likeliest token."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of them."""

    read: Callable[[str, Any], Any]
    """Name and value -> the value as it is meant; None says nothing. Raises InvalidRequest."""
    tensor: str = ""
    """That says the same; empty where there is none, or it takes work (`tensors_of`)."""
    dtype: DTypeLike = np.int32
    refusal: str = ""
    """Why any other value than a neutral one is refused; `read` has done it then."""


def tensors_of(sampling: Mapping[str, Any]) -> dict[str, Array]:
    """The tensors that say what `sampling` says, and vLLM's defaults where it says nothing."""
    drawing: dict[str, Any] = {"max_tokens": DEFAULT_MAX_TOKENS, "temperature": 1.0, "top_p": 1.0, **sampling}
    if drawing["temperature"] < _LEAST_TEMPERATURE:
        drawing |= {"temperature": 1.0, "top_k": 1}
        drawing.pop("top_p")
        drawing.pop("min_p", None)
    tensors = {
        parameter.tensor: np.array([value] if isinstance(value, list) else [[value]], parameter.dtype)
        for name, parameter in PARAMETERS.items()
        if parameter.tensor and (value := drawing.get(name)) is not None
    }
    if drawing.get("ignore_eos"):
        tensors["end_id"] = np.array([[-1]], np.int32)
    if bias := drawing.get("logit_bias"):
        tensors["logit_bias_ids"] = np.array([list(bias)], np.int32)
        tensors["logit_bias_values"] = np.array([list(bias.values())], np.float32)
    if (guide := drawing.get("structured_outputs")) is not None:
        kind, text = guide
        tensors["guided_decoding_guide_type"] = np.array([[kind.encode()]], np.object_)
        tensors["guided_decoding_guide"] = np.array([[text.encode()]], np.object_)
    return tensors


def _fail(name: str, value: object, remedy: str) -> InvalidRequest:
    return InvalidRequest(f"{SOURCE}.{name}", value, remedy)


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise ValueError
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        raise _fail(name, value, "must be an integer") from None
    if not -(2**31) <= number < 2**31 and name != "seed":
        raise _fail(name, value, "must be an integer of 32 bits")
    return number


def _count(name: str, value: Any) -> int:
    if (number := _integer(name, value)) < 0:
        raise _fail(name, value, "must be at least 0")
    return number


def _seed(name: str, value: Any) -> int:
    if not 0 <= (number := _integer(name, value)) < 2**64:
        raise _fail(name, value, "must be between 0 and 2**64 - 1")
    return number


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        raise _fail(name, value, "must be a number") from None
    return number


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise _fail(name, value, "must be true or false")
    return value


def _text(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise _fail(name, value, "must be a string")
    return value.encode("utf-8", "surrogatepass")  # what is no text is refused where it is read


def _texts(name: str, value: Any) -> list[bytes]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise _fail(name, value, "must be a string, or a list of them")
    return [_text(name, item) for item in listed]


def _top_k(name: str, value: Any) -> int:
    return max(0, number) if (number := _integer(name, value)) >= -1 else number


def _bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise _fail(name, value, "must be an object of token ids and numbers")
    return {_integer(name, token): _number(name, bias) for token, bias in value.items()}


def _guide(name: str, value: Any) -> tuple[str, str] | None:
    """vLLM's structured outputs as the contract's guide: its type and its text."""
    try:
        wanted = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise _fail(name, value, f"must be a JSON object ({error})") from None
    if not isinstance(wanted, dict):
        raise _fail(name, value, "must be a JSON object")
    given = {key: item for key, item in wanted.items() if item not in (None, False)}
    if not given:
        return None
    (key, item), *others = given.items()
    if others or key not in _GUIDES:
        raise _fail(name, value, f"takes one of {', '.join(_GUIDES)}")
    return _GUIDES[key](item)


def _schema(item: Any) -> tuple[str, str]:
    return "json_schema", item if isinstance(item, str) else json.dumps(item)


def _choice(item: Any) -> tuple[str, str]:
    if not isinstance(item, list) or not item or not all(isinstance(each, str) and each for each in item):
        raise _fail("structured_outputs", item, "choice is a list of strings")
    # A JSON string is a string of the grammar: it escapes quotes, backslashes and line ends alike.
    return "ebnf_grammar", "root ::= " + " | ".join(json.dumps(each, ensure_ascii=False) for each in item)


def _spelt(kind: str) -> Callable[[Any], tuple[str, str]]:
    def take(item: Any) -> tuple[str, str]:
        return kind, _text("structured_outputs", item).decode("utf-8", "surrogatepass")

    return take


_GUIDES: Final[Mapping[str, Callable[[Any], tuple[str, str]]]] = {
    "json": _schema,
    "json_object": lambda _: ("json", ""),
    "regex": _spelt("regex"),
    "grammar": _spelt("ebnf_grammar"),
    "choice": _choice,
}


def _refused(remedy: str, *neutral: object) -> Parameter:
    """A parameter that may say nothing but what is `neutral`, also as a string of it."""
    spelt = {str(value).lower() for value in neutral}

    def read(name: str, value: Any) -> None:
        if value not in neutral and str(value).lower() not in spelt:
            raise _fail(name, value, remedy)

    return Parameter(read, refusal=remedy)


_ONE_ANSWER: Final = "a request has one answer here; ask as often as you want answers"
_BEAMS: Final = "beams are asked for by tensorrt_llm's own tensors; leave it out"
PARAMETERS: Final[Mapping[str, Parameter]] = {
    "max_tokens": Parameter(_integer, "max_tokens"),
    "min_tokens": Parameter(_integer, "min_tokens"),
    "temperature": Parameter(_number, "temperature", np.float32),
    "top_p": Parameter(_number, "top_p", np.float32),
    "top_k": Parameter(_top_k, "top_k"),
    "min_p": Parameter(_number, "min_p", np.float32),
    "seed": Parameter(_seed, "seed", np.uint64),
    "repetition_penalty": Parameter(_number, "repetition_penalty", np.float32),
    "presence_penalty": Parameter(_number, "presence_penalty", np.float32),
    "frequency_penalty": Parameter(_number, "frequency_penalty", np.float32),
    "stop": Parameter(_texts, "stop_words", np.object_),
    "bad_words": Parameter(_texts, "bad_words", np.object_),
    "skip_special_tokens": Parameter(_flag, "skip_special_tokens", np.bool_),
    "lora_name": Parameter(_text, "lora_name", np.object_),
    "ignore_eos": Parameter(_flag),
    "logit_bias": Parameter(_bias),
    "logprobs": Parameter(_count),
    "structured_outputs": Parameter(_guide),
    "guided_decoding": Parameter(_guide),
    "n": _refused(_ONE_ANSWER, 1),
    "best_of": _refused(_ONE_ANSWER, 1),
    "use_beam_search": _refused(_BEAMS, False),
    "length_penalty": _refused(_BEAMS, 1.0, 1),
    "early_stopping": _refused(_BEAMS, False),
    "prompt_logprobs": _refused("the vLLM backend has no output for them; ask tensorrt_llm for num_prompt_log_probs"),
    "stop_token_ids": _refused("name the tokens' text in stop", []),
    "include_stop_str_in_output": _refused("a stop string is not shown; leave it out", False),
    "allowed_token_ids": _refused("hold the answer to a grammar in structured_outputs", []),
    "truncate_prompt_tokens": _refused("a prompt that is too long is refused; shorten it"),
    "detokenize": _refused("answers are text; ask tensorrt_llm for output_ids", True),
    "spaces_between_special_tokens": _refused("none are put there; leave it out", True),
}
"""vLLM's name -> what becomes of it."""
NAMES: Final[Mapping[str, str]] = {
    **{parameter.tensor: f"{SOURCE}.{name}" for name, parameter in PARAMETERS.items() if parameter.tensor},
    "end_id": f"{SOURCE}.ignore_eos",
    "logit_bias_ids": f"{SOURCE}.logit_bias",
    "logit_bias_values": f"{SOURCE}.logit_bias",
    "num_log_probs": f"{SOURCE}.logprobs",
    "guided_decoding_guide_type": f"{SOURCE}.structured_outputs",
    "guided_decoding_guide": f"{SOURCE}.structured_outputs",
}
"""tensorrt_llm's input -> where the client said it."""
