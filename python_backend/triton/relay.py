"""Relay: one request on its way to another model and back; and Relays, all of one model.

Each request is relayed on a thread of its own, so that one model instance serves many at once, and a client that goes away
stops the work there.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb

from trierarch.builder.manifest import Limits
from trierarch.python_backend.errors import Cancelled, Overloaded
from trierarch.python_backend.triton.beam_inputs import num_responses
from trierarch.python_backend.triton.cancellation import OpenRequests
from trierarch.python_backend.triton.channel import Channel
from trierarch.python_backend.triton.incoming import Incoming
from trierarch.python_backend.triton.inputs import Array, Inputs, batch_size
from trierarch.python_backend.triton.periodic import Periodic
from trierarch.python_backend.triton.refusals import refuse_unsupported
from trierarch.python_backend.triton.speculation_inputs import read_speculation
from trierarch.python_backend.triton.status import TAG_ERRORS, RelayedError, StatusCode, untag
from trierarch.python_backend.triton.triton_channel import take, to_arrays

_CONTROL: Final = frozenset({"finish_reason", "batch_index", "sequence_index"})
"""Outputs the relay reads itself."""


def _take(inputs: Inputs) -> None:
    """Any row."""


def _end(channel: Channel) -> None:
    """An empty response."""
    channel.send([], is_final=True)


def _as_it_is(incoming: Incoming) -> Incoming:
    """The same words."""
    return incoming


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where requests go, and as what."""

    model: str
    """The model that is asked."""
    forwarded: frozenset[str]
    """Inputs that go along; others are this model's own affair."""
    accumulates: bool = False
    """Whether clients get the text so far in place of what is new."""
    fixed: Mapping[str, Callable[[int], Array]] = field(default_factory=dict)
    """Input -> what it is for a batch of that size, whatever the client sent."""
    check: Callable[[Inputs], None] = _take
    """Raises InvalidRequest for a row that this model does not take."""
    translate: Callable[[Incoming], Incoming] = _as_it_is
    """What a request is in the other model's words; it may raise InvalidRequest."""
    tell_stopped: Callable[[Channel], None] = _end
    """The last word to a request that a client asked to stop, and to the one that it asked with."""


class Relays:
    """Takes requests as fast as Triton hands them over, as many at once as the engine runs or queues."""

    def __init__(self, name: str, route: Route, limits: Limits, cancellation_period: float) -> None:
        """`name` is the threads'; `limits` are the engine's; `cancellation_period` seconds pass between two looks."""
        max_requests = limits.max_batch_size + limits.max_queue_size
        self._route = route
        self._places = threading.BoundedSemaphore(max_requests)
        self._threads = ThreadPoolExecutor(max_requests, thread_name_prefix=name)
        self._open = OpenRequests()
        self._watch = Periodic(f"{name}-cancellation", cancellation_period, self._open.cancel_abandoned)

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
        relay: Relay | None = None
        try:
            incoming = self._route.translate(incoming)
            if Inputs(incoming.arrays).flag("stop"):
                self._open.stop(incoming.client_id)
                self._route.tell_stopped(incoming.channel)
                return
            relay = Relay(incoming, self._route)
            self._open.add(relay)
            relay.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            incoming.channel.fail(error)
        finally:
            if relay is not None:
                self._open.discard(relay)
            self._places.release()


class Relay:
    """One request on its way to the other model and back."""

    def __init__(self, incoming: Incoming, route: Route) -> None:
        """Nothing is sent yet."""
        self._incoming = incoming
        self._channel = incoming.channel
        self._route = route
        self._request_id = uuid.uuid4().hex
        self._texts: dict[tuple[int, int], bytes] = {}  # (batch index, sequence index) -> text so far
        self._num_unfinished = 0
        self._has_begun = False

    @property
    def client_id(self) -> str:
        """See Cancellable."""
        return self._incoming.client_id

    @property
    def has_begun(self) -> bool:
        """See Cancellable."""
        return self._has_begun

    def is_cancelled(self) -> bool:
        """See Cancellable."""
        return self._channel.is_cancelled()

    def cancel(self) -> None:
        """See Cancellable. Nothing cancels a relayed request but a `stop` with its id."""
        self._channel.fail(Cancelled("the client cancelled the request"))
        for _ in self._ask({"stop": np.array([[True]])}, []):
            pass

    def stop(self) -> None:
        """See Cancellable."""
        self._route.tell_stopped(self._channel)
        self.cancel()

    def run(self) -> None:
        """Send each response on as it comes.

        Raises:
            InvalidRequest: the request asks for what no model here does.
            RelayedError: the other model refused or failed.
        """
        arrays = self._incoming.arrays
        for row in range(batch_size(arrays)):
            inputs = Inputs(arrays, row)
            refuse_unsupported(inputs)
            read_speculation(inputs)
            self._route.check(inputs)
            self._num_unfinished += num_responses(inputs)
        forwarded = {name: array for name, array in arrays.items() if name in self._route.forwarded}
        forwarded |= {name: make(batch_size(arrays)) for name, make in self._route.fixed.items()}
        if "num_draft_tokens" in Inputs(arrays):
            forwarded["max_draft_tokens"] = arrays["num_draft_tokens"]
        forwarded["return_finish_reason"] = np.ones((batch_size(arrays), 1), np.bool_)
        for outputs in self._ask(forwarded, sorted(self._incoming.requested | _CONTROL)):
            self._has_begun = True
            self._pass_on(outputs)
        self._channel.send([], is_final=True)  # nothing happens if the last response is out

    def _ask(self, arrays: dict[str, Array], outputs: list[str]) -> Any:
        """The responses of the other model, as arrays by name."""
        request = pb.InferenceRequest(
            model_name=self._route.model,
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
        if self._route.accumulates and "text_output" in outputs:
            indices = Inputs(outputs)
            key = (indices.integer("batch_index") or 0, indices.integer("sequence_index") or 0)
            self._texts[key] = self._texts.get(key, b"") + outputs["text_output"][0]
            outputs["text_output"] = np.array([self._texts[key], *outputs["text_output"][1:]], np.object_)
        wants_reason = bool(Inputs(self._incoming.arrays).flag("return_finish_reason"))
        arrays = [
            (name, array)
            for name, array in outputs.items()
            if name in self._incoming.requested and (wants_reason or name != "finish_reason")
        ]
        self._channel.send(arrays, is_final=self._num_unfinished == 0)
