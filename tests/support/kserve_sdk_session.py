"""Run by the SDK's own Python, with a server's HTTP and gRPC addresses: what KServe's clients get, as JSON.

Nothing of Trierarch is imported here: these are somebody else's clients.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelMetadataRequest

MODEL = "tensorrt_llm"


def request(prompt: str, num_tokens: int) -> InferRequest:
    """A prompt, as text and greedy."""
    text = InferInput("text_input", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[prompt.encode()]], dtype=np.object_), binary_data=False)
    limit = InferInput("request_output_len", [1, 1], "INT32")
    limit.set_data_from_numpy(np.array([[num_tokens]], dtype=np.int32), binary_data=False)
    return InferRequest(MODEL, [text, limit])


def text_of(response: Any) -> str:
    """The answer."""
    (output,) = (output for output in response.outputs if output.name == "text_output")
    value = output.as_numpy().reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else str(value)


async def health(asked: Awaitable[bool]) -> bool | str:
    """What the client says; where it finds no JSON, that."""
    try:
        return await asked
    except ValueError:
        return "no JSON"


async def rest(url: str, prompt: str) -> dict[str, Any]:
    """By InferenceRESTClient."""
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=120)) as client:
        metadata = (await client._client.get(f"{url}/v2/models/{MODEL}")).json()
        return {
            "live": await health(client.is_server_live(url)),
            "ready": await health(client.is_server_ready(url)),
            "model ready": await client.is_model_ready(url, MODEL),
            "inputs": [tensor["name"] for tensor in metadata["inputs"]],
            "text": text_of(await client.infer(url, request(prompt, 8), model_name=MODEL)),
        }


async def grpc(url: str, prompt: str) -> dict[str, Any]:
    """By InferenceGRPCClient."""
    async with InferenceGRPCClient(url, timeout=120) as client:
        metadata = await client._client_stub.ModelMetadata(ModelMetadataRequest(name=MODEL))
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready(MODEL),
            "inputs": [tensor.name for tensor in metadata.inputs],
            "text": text_of(await client.infer(request(prompt, 8))),
        }


async def main(http: str, grpc_url: str, prompt: str) -> None:
    """Ask by both, and print."""
    print(json.dumps({"rest": await rest(http, prompt), "grpc": await grpc(grpc_url, prompt)}))  # noqa: T201


asyncio.run(main(*sys.argv[1:]))
