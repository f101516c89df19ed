"""Our executor behind a real Triton, as `trierarch serve` runs it, asked over gRPC streams of token tensors.

The client runs here, on the same machine; each stream has a connection of its own, opened before anything is timed,
and tokens and text come as they are made.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from trierarch.benchmarks.workers.protocol import MAX_BATCH_SIZE, Ready, Steering, TokenIds, serve

MODEL: Final = "tensorrt_llm"
COMMAND: Final = Path(sys.executable).with_name("trierarch")
NO_END: Final = -1
"""The contract's end_id that ends nothing."""
STOP_SECONDS: Final = 10


class TritonWorker:
    """One `trierarch serve` and a stream for each prompt that may be in flight."""

    def __init__(self, engine: Path) -> None:
        """Start the server and wait until it has loaded `engine`."""
        ports = [f"--{service}-port=0" for service in ("http", "grpc", "metrics")]
        self._started = time.monotonic()
        self._server = subprocess.Popen(
            [
                str(COMMAND),
                "serve",
                str(engine),
                *ports,
                "--no-gateway",
                "--drain-timeout=5",
                "--log-level=warning",
                "--json",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        announcement = self._server.stdout.readline()
        if not announcement:
            raise RuntimeError(f"trierarch serve ended with status {self._server.wait()}")
        address = json.loads(announcement)["grpc"]
        self._responses: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
        self._steering = Steering()
        self._streams = [triton.InferenceServerClient(address) for _ in range(MAX_BATCH_SIZE)]
        for index, stream in enumerate(self._streams):
            stream.start_stream(partial(self._arrive, index))

    @property
    def ready(self) -> Ready:
        """Our version and Triton's, and the server as the process that counts."""
        triton_version = self._streams[0].get_server_metadata(as_json=True)["version"]
        return Ready(version("trierarch"), {"triton": triton_version}, self._server.pid, self._started)

    def steer(self, steering: Steering) -> None:
        """See Steered.steer."""
        self._steering = steering

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """One stream a prompt, all at once."""
        self._raise_if_broken()
        outputs: list[TokenIds] = [[] for _ in prompts]
        wanted = [triton.InferRequestedOutput(name) for name in ("output_ids", "text_output")]
        for stream, prompt in zip(self._streams, prompts, strict=False):
            inputs = {
                "input_ids": np.array([prompt], np.int32),
                "request_output_len": np.array([[num_output_tokens]], np.int32),
                "end_id": np.array([[NO_END]], np.int32),
                "streaming": np.array([[True]]),
                "cache_salt": np.array([[self._steering.tenant.encode()]], np.object_),
            }
            if not isinstance(self._steering.speculation, str):
                inputs["max_draft_tokens"] = np.array([[self._steering.speculation]], np.int32)
            tensors = [_tensor(name, array) for name, array in inputs.items()]
            stream.async_stream_infer(MODEL, tensors, outputs=wanted, enable_empty_final_response=True)
        num_unfinished = len(prompts)
        while num_unfinished:
            index, result, error = self._responses.get()
            if error is not None:
                raise error
            token_ids = result.as_numpy("output_ids")
            if token_ids is not None:
                outputs[index].extend(token_ids.reshape(-1).tolist())
            num_unfinished -= result.get_response().parameters["triton_final_response"].bool_param
        return outputs

    def close(self) -> None:
        """Close the streams and stop the server."""
        for stream in self._streams:
            stream.stop_stream(cancel_requests=True)
            stream.close()
        self._server.send_signal(signal.SIGTERM)
        try:
            self._server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _raise_if_broken(self) -> None:
        """Nothing comes between two calls but the reason why a stream broke."""
        if not self._responses.empty():
            raise self._responses.get()[2]

    def _arrive(self, index: int, result: Any, error: Any) -> None:
        self._responses.put((index, result, error))


def _tensor(name: str, array: np.ndarray[Any, Any]) -> Any:
    tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


if __name__ == "__main__":
    serve(TritonWorker)
