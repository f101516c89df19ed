"""tensorrt_llm: the model that holds the executor. Token ids or text in, token ids and text out."""

from __future__ import annotations

import itertools
import logging
from typing import Any

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.text.chat_template import ChatTemplate
from trierarch.python_backend.text.generator import TextGenerator
from trierarch.python_backend.text.tokenizer import Tokenizer
from trierarch.python_backend.triton.answer import Answer
from trierarch.python_backend.triton.cancellation import OpenRequests
from trierarch.python_backend.triton.incoming import Incoming, take
from trierarch.python_backend.triton.inputs import Inputs
from trierarch.python_backend.triton.metrics import EngineMetrics
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.periodic import Periodic
from trierarch.python_backend.triton.request_parser import Envelope, RequestParser
from trierarch.python_backend.triton.triton_metrics import TritonRegistry

logger = logging.getLogger(__name__)


class TensorrtLlm:
    """Takes requests as fast as Triton hands them over; the executor batches them, whatever the clients do."""

    def __init__(self, context: ModelContext) -> None:
        """Load the engine and start serving it.

        Raises:
            EngineError: the engine is corrupt, or foreign to this version or machine.
            ResourceError: the machine has no room for the weights or the KV cache.
        """
        manifest = EngineManifest.load(context.engine)
        tokenizer = Tokenizer.load(context.engine)
        template = ChatTemplate.load(context.engine, manifest, tokenizer)
        self._drain_timeout = context.parameters.drain_timeout_seconds
        self._metrics = EngineMetrics(TritonRegistry(), context.name, context.version, manifest.speculation)
        self._executor = open_executor(context.engine)
        self._generator = TextGenerator(self._executor, tokenizer, template, manifest)
        self._parser = RequestParser(
            vocab_size=manifest.architecture.vocab_size,
            is_decoupled=context.is_decoupled,
            exclude_input_in_output=context.parameters.exclude_input_in_output,
        )
        self._serial = itertools.count()
        self._open = OpenRequests()
        parameters = context.parameters
        self._watch = Periodic(
            "trierarch-cancellation", parameters.cancellation_check_period_ms / 1000, self._open.cancel_abandoned
        )
        self._statistics = Periodic(
            "trierarch-statistics",
            parameters.stats_check_period_ms / 1000,
            lambda: self._metrics.publish(self._executor.stats()),
        )
        logger.info("model %s serves engine %s", context.name, manifest.name)

    def execute(self, requests: list[Any]) -> None:
        """Start each request; its responses come through its sender."""
        for request in requests:
            incoming = take(request)
            try:
                self._start(incoming)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
                incoming.channel.fail(error)

    def close(self) -> None:
        """Let running requests finish for a while, end the others with CANCELLED, give everything back."""
        self._executor.drain(self._drain_timeout)
        self._watch.stop()
        self._statistics.stop()
        self._executor.close()
        self._generator.close()

    def _start(self, incoming: Incoming) -> None:
        if Inputs(incoming.arrays).flag("stop"):
            self._open.stop(incoming.client_id)
            incoming.channel.send([], is_final=True)
            return
        envelope = Envelope(
            # A client may use an id twice; the executor may not.
            request_id=f"{incoming.client_id}#{next(self._serial)}",
            requested=incoming.requested,
            timeout=incoming.timeout,
        )
        rows = self._parser.parse(incoming.arrays, envelope)
        answer = Answer(incoming.client_id, rows, incoming.channel, self._generator, self._metrics, self._open.discard)
        self._open.add(answer)
        answer.start()
