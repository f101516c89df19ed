"""tensorrt_llm_bls: the text door through business-logic scripting, for clients that name this model.

Each request is relayed to `tensorrt_llm` on a thread of its own, so that one model instance serves many at once, and a
client that goes away stops the work there.
"""

from __future__ import annotations

import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.errors import Cancelled, Overloaded
from trierarch.python_backend.triton.cancellation import OpenRequests
from trierarch.python_backend.triton.contract import ENSEMBLE
from trierarch.python_backend.triton.incoming import Incoming, take
from trierarch.python_backend.triton.inputs import Array, Inputs, batch_size
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.periodic import Periodic
from trierarch.python_backend.triton.refusals import refuse_unsupported
from trierarch.python_backend.triton.speculation_inputs import read_speculation
from trierarch.python_backend.triton.status import TAG_ERRORS, RelayedError, StatusCode, untag
from trierarch.python_backend.triton.triton_channel import to_arrays

logger = logging.getLogger(__name__)

_FORWARDED = frozenset(tensor.name for tensor in ENSEMBLE.inputs)
_CONTROL = frozenset({"finish_reason", "batch_index", "sequence_index"})
"""Outputs the relay reads itself."""


class TensorrtLlmBls:
    """Relays requests; holds no engine."""

    def __init__(self, context: ModelContext) -> None:
        """Take as many requests at once as the engine runs or queues."""
        limits = EngineManifest.load(context.engine).limits
        max_requests = limits.max_batch_size + limits.max_queue_size
        self._parameters = context.parameters
        self._places = threading.BoundedSemaphore(max_requests)
        self._threads = ThreadPoolExecutor(max_requests, thread_name_prefix="trierarch-bls")
        self._open = OpenRequests()
        period = context.parameters.cancellation_check_period_ms / 1000
        self._watch = Periodic("trierarch-bls-cancellation", period, self._open.cancel_abandoned)

    def execute(self, requests: list[Any]) -> None:
        """Start relaying; one request too many is refused at once."""
        for request in requests:
            incoming = take(request)
            if not self._places.acquire(blocking=False):
                incoming.channel.fail(Overloaded("the queue is full; retry later"))
                continue
            self._threads.submit(self._serve, incoming)

    def close(self) -> None:
        """Let the running relays end, then stop."""
        self._threads.shutdown(wait=True)
        self._watch.stop()

    def _serve(self, incoming: Incoming) -> None:
        relay = Relay(incoming, self._parameters.tensorrt_llm_model_name, self._parameters.accumulate_tokens)
        self._open.add(relay)
        try:
            relay.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            incoming.channel.fail(error)
        finally:
            self._open.discard(relay)
            self._places.release()


class Relay:
    """One request on its way to the other model and back."""

    def __init__(self, incoming: Incoming, model: str, accumulates: bool) -> None:
        """Relay `incoming` to `model`; `accumulates` sends the text so far in place of what is new."""
        self._incoming = incoming
        self._channel = incoming.channel
        self._model = model
        self._accumulates = accumulates
        self._request_id = uuid.uuid4().hex
        self._texts: dict[tuple[int, int], bytes] = {}  # (batch index, sequence index) -> text so far
        self._num_unfinished = 0

    @property
    def client_id(self) -> str:
        """See Cancellable."""
        return self._incoming.client_id

    def is_cancelled(self) -> bool:
        """See Cancellable."""
        return self._channel.is_cancelled()

    def cancel(self) -> None:
        """See Cancellable. Nothing cancels a BLS request but a `stop` with its id."""
        self._channel.fail(Cancelled("the client cancelled the request"))
        for _ in self._ask({"stop": np.array([[True]])}, []):
            pass

    def stop(self) -> None:
        """See Cancellable."""
        self._channel.send([], is_final=True)
        self.cancel()

    def run(self) -> None:
        """Send each response on as it comes.

        Raises:
            InvalidRequest: the request asks for what no model here does.
            RelayedError: the other model refused or failed.
        """
        arrays = self._incoming.arrays
        for row in range(batch_size(arrays)):
            refuse_unsupported(Inputs(arrays, row))
            read_speculation(Inputs(arrays, row))
            self._num_unfinished += Inputs(arrays, row).integer("num_return_sequences") or 1
        forwarded = {name: array for name, array in arrays.items() if name in _FORWARDED}
        if "num_draft_tokens" in Inputs(arrays):
            forwarded["max_draft_tokens"] = arrays["num_draft_tokens"]
        forwarded["return_finish_reason"] = np.ones((batch_size(arrays), 1), np.bool_)
        for outputs in self._ask(forwarded, sorted(self._incoming.requested | _CONTROL)):
            self._pass_on(outputs)
        self._channel.send([], is_final=True)  # nothing happens if the last response is out

    def _ask(self, arrays: dict[str, Array], outputs: list[str]) -> Any:
        """The responses of the other model, as arrays by name."""
        request = pb.InferenceRequest(
            model_name=self._model,
            request_id=self._request_id,
            requested_output_names=outputs,
            inputs=[pb.Tensor(name, array) for name, array in arrays.items()],
            parameters={TAG_ERRORS: True},
            timeout=int((self._incoming.timeout or 0.0) * 1e6),
        )
        for response in request.exec(decoupled=True):
            if response.has_error():
                message = response.error().message()
                raise untag(message) or RelayedError(StatusCode.INTERNAL, message)
            yield to_arrays(response.output_tensors())

    def _pass_on(self, outputs: dict[str, Array]) -> None:
        if not outputs:
            return
        self._num_unfinished -= "finish_reason" in outputs
        if self._accumulates and "text_output" in outputs:
            indices = Inputs(outputs)
            key = (indices.integer("batch_index") or 0, indices.integer("sequence_index") or 0)
            self._texts[key] = self._texts.get(key, b"") + outputs["text_output"][0]
            outputs["text_output"] = np.array([self._texts[key]], np.object_)
        wants_reason = bool(Inputs(self._incoming.arrays).flag("return_finish_reason"))
        arrays = [
            (name, array)
            for name, array in outputs.items()
            if name in self._incoming.requested and (wants_reason or name != "finish_reason")
        ]
        self._channel.send(arrays, is_final=self._num_unfinished == 0)
