"""ApiError: what a client is told went wrong, in the shape of OpenAI's API."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from trierarch.orchestrator.gateway.upstream import Unavailable
from trierarch.python_backend.triton.status import RelayedError, StatusCode

_SHOWN: Final = 80
_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_PROMPT_LENGTH: Final = "number of prompt tokens"
_LIMITS: Final = ("max_seq_len", "KV slots")
"""What the model names where a prompt, or what it leaves for the answer, is too long."""


class ApiError(Exception):
    """Ends a request; `param` names the field that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """`retry_after`: seconds until asking again is worth it."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def content(self) -> dict[str, Any]:
        """The error for JSON."""
        kind = _KINDS.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The error as JSON."""
        return json.dumps(self.content()).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers beside those that every answer has."""
        found = []
        if self.retry_after is not None:
            found.append((b"retry-after", str(max(1, math.ceil(self.retry_after))).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


def invalid(param: str, value: object, remedy: str, code: str | None = None) -> ApiError:
    """A field that cannot be honoured; its value is shown shortened."""
    return ApiError(400, f"{param} is {shown(value)}: {remedy}", param=param, code=code)


def shown(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, list | dict) and len(value) > _SHOWN:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value[: 2 * _SHOWN] if isinstance(value, str) else value)
    except RecursionError:
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def unknown_model(name: str) -> ApiError:
    """Nothing of that name is served."""
    return ApiError(404, f"The model {shown(name)} does not exist", param="model", code="model_not_found")


def of_triton(error: RelayedError, retry_after: float) -> ApiError:
    """What the model answered. `retry_after` is for a queue that is full."""
    message = str(error)
    if error.code is StatusCode.INVALID_ARG:
        tensor = message.split(" is ", 1)[0]
        if tensor == "lora_name" and "is not registered" in message:
            return ApiError(404, message, param="model", code="model_not_found")
        name = PARAMETERS.get(tensor, tensor)
        is_too_long = any(limit in message for limit in _LIMITS)
        return ApiError(
            400,
            name + message.removeprefix(tensor),
            param="prompt" if name == _PROMPT_LENGTH else name,
            code="context_length_exceeded" if is_too_long else None,
        )
    if error.code is StatusCode.UNAVAILABLE:
        return ApiError(503, f"{message}; ask again later", code="overloaded", retry_after=retry_after)
    if error.code is StatusCode.CANCELLED:
        return ApiError(504, message, code="cancelled")
    return ApiError(500, message, code="internal_error")


def of_upstream(error: Unavailable) -> ApiError:
    """There is no Triton to ask."""
    return ApiError(503, error.reason, code="unavailable", retry_after=error.retry_after)


PARAMETERS: Final = {
    "text_input": "prompt",
    "input_ids": "prompt",
    "request_output_len": "max_tokens",
    "num_return_sequences": "n",
    "beam_width": "best_of",
    "len_penalty": "length_penalty",
    "stop_words": "stop",
    "stop_words_list": "stop_token_ids",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "embedding_bias": "logit_bias",
    "embedding_bias_words": "logit_bias",
    "logit_bias_ids": "logit_bias",
    "num_log_probs": "logprobs",
    "lora_name": "model",
    "guided_decoding_guide_type": "response_format",
    "guided_decoding_guide": "response_format",
    "number of tokens of text_input": _PROMPT_LENGTH,
    "number of tokens of input_ids": _PROMPT_LENGTH,
}
"""The model's tensor -> what the client sent, where they differ."""
