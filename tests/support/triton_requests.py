"""Raw requests in the contract's tensors, as clients written for TensorRT-LLM's backend send them."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from trierarch.python_backend.triton.contract import CONTRACTS, DataType
from trierarch.python_backend.triton.status import TAG_ERRORS, StatusCode, status_of, untag

PATIENCE_SECONDS: Final = 120.0
_NUMPY: Final[dict[DataType, Any]] = {
    DataType.BOOL: np.bool_,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.UINT64: np.uint64,
    DataType.FP32: np.float32,
    DataType.STRING: np.object_,
}
_TYPES: Final = {tensor.name: tensor.dtype for contract in CONTRACTS.values() for tensor in contract.inputs}


@dataclass(frozen=True, slots=True)
class Reply:
    """One response: outputs in the order of the wire."""

    request_id: str
    arrays: dict[str, NDArray[Any]]
    is_final: bool

    @property
    def text(self) -> str:
        """The way clients read it."""
        text: bytes = self.arrays["text_output"][0]
        return text.decode()


def tensors(**values: Any) -> list[grpc.InferInput]:
    """Inputs of one row: a scalar becomes (1, 1), a list (1, n); an array is sent as it is."""
    return [_tensor(name, value) for name, value in values.items()]


def _tensor(name: str, value: Any) -> grpc.InferInput:
    dtype = _TYPES[name]
    if not isinstance(value, np.ndarray):
        row = value if isinstance(value, list) else [value]
        value = np.array([[item.encode() if isinstance(item, str) else item for item in row]], _NUMPY[dtype])
    tensor = grpc.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
    tensor.set_data_from_numpy(value)
    return tensor


def stream(
    url: str,
    model: str,
    *,
    request_id: str = "",
    outputs: tuple[str, ...] = (),
    timeout: int | None = None,
    **values: Any,
) -> Iterator[Reply]:
    """Send one request over a stream of its own; leaving the iteration early cancels it.

    Raises:
        InferenceServerException: what the server answered.
    """
    arrivals: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: arrivals.put((result, error)))
        try:
            client.async_stream_infer(
                model,
                tensors(**values),
                request_id=request_id,
                outputs=[grpc.InferRequestedOutput(name) for name in outputs] or None,
                enable_empty_final_response=True,
                timeout=timeout,
                parameters={TAG_ERRORS: True},
            )
            while True:
                result, error = arrivals.get(timeout=PATIENCE_SECONDS)
                if error is not None:
                    raise error
                reply = _reply(result)
                yield reply
                if reply.is_final:
                    return
        finally:
            client.stop_stream(cancel_requests=True)


def ask(url: str, model: str, **values: Any) -> list[Reply]:
    """Every response to one request."""
    return list(stream(url, model, **values))


def refusal(url: str, model: str, **values: Any) -> tuple[StatusCode, str]:
    """Status and message of a request that must fail."""
    try:
        replies = ask(url, model, **values)
    except InferenceServerException as error:
        return status_of(untag(str(error.message())) or error)
    raise AssertionError(f"the server answered {replies}")


def unary(url: str, model: str, *, request_id: str = "", **values: Any) -> Reply:
    """One unary request."""
    with grpc.InferenceServerClient(url) as client:
        return _reply(client.infer(model, tensors(**values), request_id=request_id), is_final=True)


def _reply(result: Any, is_final: bool | None = None) -> Reply:
    response = result.get_response()
    if is_final is None:
        is_final = response.parameters["triton_final_response"].bool_param
    return Reply(response.id, {output.name: result.as_numpy(output.name) for output in response.outputs}, is_final)
