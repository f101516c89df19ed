"""Sends what Triton's OpenAI front end would: its own functions build the requests, tritonclient carries them.

The front end runs Triton in its own process by the `tritonserver` bindings. Here a stand-in for that package records the
tensors that `_create_trtllm_generate_request` makes; they go to a server over gRPC instead.

python openai_requests.py CHECKOUT/python/openai/openai_frontend GRPC_URL
"""

from __future__ import annotations

import queue
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import np_to_triton_dtype

MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm")
CHAT: dict[str, dict[str, Any]] = {
    "the least": {},
    "streamed": {"stream": True},
    "max_completion_tokens": {"max_completion_tokens": 4},
    "sampling": {"temperature": 0.7, "top_p": 0.9, "seed": 7, "frequency_penalty": 0.1, "presence_penalty": 0.1},
    "one stop": {"stop": "."},
    "several stops": {"stop": [".", "\n"]},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "the least": {},
    "echo": {"echo": True, "max_tokens": 4},
    "streamed": {"stream": True, "max_tokens": 4},
}


class Recorder:
    """What the front end takes for a model."""

    def create_request(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The tensors themselves."""
        return inputs


def stand_in() -> types.ModuleType:
    """A `tritonserver` whose every name is a class."""
    module = types.ModuleType("tritonserver")
    module.__getattr__ = lambda name: type(name, (), {"__getattr__": lambda self, _: None})  # type: ignore[method-assign]
    api = types.SimpleNamespace(_response=types.SimpleNamespace(InferenceResponse=object))
    module._api = api  # type: ignore[attr-defined]
    return module


def send(url: str, model: str, inputs: dict[str, Any]) -> list[Any]:
    """The responses.

    Raises:
        InferenceServerException: what the server answered.
    """
    tensors = []
    for name, value in inputs.items():
        array = value if isinstance(value, np.ndarray) else np.array(value, np.object_)
        if array.dtype == np.object_:
            array = np.array([[item.encode() for item in row] for row in array], np.object_)
        tensors.append(grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    arrivals: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: arrivals.put((result, error)))
        client.async_stream_infer(model, tensors)
        client.stop_stream()
    responses = []
    while not arrivals.empty():
        result, error = arrivals.get()
        if error is not None:
            raise error
        responses.append(result)
    return responses


def main(front_end: Path, url: str) -> None:
    """Send every request to every model that generates, and look at what the front end reads of the answers."""
    sys.modules["tritonserver"] = stand_in()
    sys.path.insert(0, str(front_end))
    from engine.utils.triton import _create_trtllm_generate_request as create
    from schemas.openai import CreateChatCompletionRequest, CreateCompletionRequest

    kinds = [
        (
            "chat",
            options,
            CreateChatCompletionRequest(model="m", messages=[{"role": "user", "content": "Hi"}], **options),
        )
        for options in CHAT.values()
    ] + [
        ("completion", options, CreateCompletionRequest(model="m", prompt="The capital of France is", **options))
        for options in COMPLETIONS.values()
    ]
    for model in MODELS:
        for kind, options, request in kinds:
            inputs = create(Recorder(), "The capital of France is", request, None, "exclude_input_in_output", 16)
            responses = send(url, model, inputs)
            text = b"".join(response.as_numpy("text_output")[0] for response in responses).decode()
            usage = {name: responses[-1].as_numpy(name) for name in ("num_input_tokens", "num_output_tokens")}
            assert text
            assert all(value is not None and value.size == 1 for value in usage.values()), usage
            print(f"{model} {kind} {options}: {len(responses)} responses, {text!r}")
    print("every request was answered")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
