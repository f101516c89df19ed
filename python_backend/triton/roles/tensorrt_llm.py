"""tensorrt_llm: the model that holds the executor. Token ids or text in, token ids and text out."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.factory import open_directories, open_executor
from trierarch.python_backend.executors.offload.config import OffloadConfig
from trierarch.python_backend.executors.prefix_file import PrefixFile
from trierarch.python_backend.text.chat_template import ChatTemplate
from trierarch.python_backend.text.generator import TextGenerator
from trierarch.python_backend.text.tokenizer import Tokenizer
from trierarch.python_backend.triton.adapter_uploads import AdapterUploads
from trierarch.python_backend.triton.answer import Answer
from trierarch.python_backend.triton.cancellation import OpenRequests
from trierarch.python_backend.triton.dead_engine import WATCH_SECONDS, DeadEngine
from trierarch.python_backend.triton.description import description
from trierarch.python_backend.triton.incoming import Incoming
from trierarch.python_backend.triton.inputs import Inputs
from trierarch.python_backend.triton.kv_events import SINCE, kv_events
from trierarch.python_backend.triton.metrics import EngineMetrics
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.periodic import Periodic
from trierarch.python_backend.triton.request_parser import Envelope, RequestParser, Row
from trierarch.python_backend.triton.responses import Piece, to_arrays
from trierarch.python_backend.triton.triton_channel import take
from trierarch.python_backend.triton.triton_metrics import TritonRegistry
from trierarch.python_backend.triton.upload_line import UploadLine

logger = logging.getLogger(__name__)


class TensorrtLlm:
    """Takes requests as fast as Triton hands them over; the executor batches them, whatever the clients do."""

    def __init__(self, context: ModelContext) -> None:
        """Load the engine and start serving it.

        Raises:
            ConfigError: an adapter directory is not there, or the engine takes no adapters; or the tiers behind the KV cache
                cannot be as the parameters say.
            EngineError: the engine is corrupt, or foreign to this version or machine.
            ResourceError: the machine has no room for the weights or the KV cache.
        """
        manifest = EngineManifest.load(context.engine)
        tokenizer = Tokenizer.load(context.engine)
        template = ChatTemplate.load(context.engine, manifest, tokenizer)
        self._drain_timeout = context.parameters.drain_timeout_seconds
        offload = _offload(context)
        self._metrics = EngineMetrics(
            TritonRegistry(), context.name, context.version, manifest.speculation, manifest.lora, offload
        )
        directories = tuple(context.in_repository(path) for path in context.parameters.adapter_directories)
        self._uploads = _open_uploads(context, manifest, directories)
        self._registered = open_directories(context.engine, manifest, directories)
        if self._uploads is not None:
            directories += (self._uploads.directory,)
        self._executor = open_executor(
            context.engine,
            adapter_directories=directories,
            prefixes=_prefixes(context, manifest),
            offload=offload,
        )
        self._generator = TextGenerator(self._executor, tokenizer, template, manifest)
        self._manifest = manifest
        self._has_chat_template = template is not None
        self._parser = RequestParser(
            vocab_size=manifest.architecture.vocab_size,
            is_decoupled=context.is_decoupled,
            exclude_input_in_output=context.parameters.exclude_input_in_output,
        )
        self._serial = itertools.count()
        self._open = OpenRequests()
        self._line = UploadLine(self._start)
        parameters = context.parameters
        self._watch = Periodic(
            "trierarch-cancellation", parameters.cancellation_check_period_ms / 1000, self._open.cancel_abandoned
        )
        self._statistics = Periodic(
            "trierarch-statistics",
            parameters.stats_check_period_ms / 1000,
            lambda: self._metrics.publish(self._executor.stats()),
        )
        dead_engine = DeadEngine(self.is_ready, lambda: len(self._open))
        self._health = Periodic("trierarch-health", WATCH_SECONDS, dead_engine.look)
        logger.info("model %s serves engine %s", context.name, manifest.name)

    def execute(self, requests: list[Any]) -> None:
        """Start each request; its responses come through its sender."""
        for request in requests:
            incoming = take(request)
            if self._line.takes(incoming):
                self._line.put(incoming)
            else:
                self._start(incoming)

    def is_ready(self) -> bool:
        """See Watched.is_ready."""
        return self._executor.is_healthy

    def close(self) -> None:
        """Let running requests finish for a while, end the others with CANCELLED, give everything back."""
        self._line.close()
        self._generator.drain(self._drain_timeout)
        self._health.stop()
        self._watch.stop()
        self._statistics.stop()
        self._executor.close()
        self._generator.close()
        if self._uploads is not None:
            self._uploads.close()

    def _start(self, incoming: Incoming) -> None:
        try:
            self._answer(incoming)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            incoming.channel.fail(error)

    def _answer(self, incoming: Incoming) -> None:
        if Inputs(incoming.arrays).flag("stop"):
            self._open.stop(incoming.client_id)
            incoming.channel.send([], is_final=True)
            return
        if Inputs(incoming.arrays).flag("describe"):
            adapters = () if self._registered is None else self._registered.names()
            incoming.channel.send(description(self._manifest, adapters, self._has_chat_template), is_final=True)
            return
        if (since := Inputs(incoming.arrays).integer(SINCE)) is not None:
            incoming.channel.send(kv_events(self._executor.kv_events(since), since), is_final=True)
            return
        envelope = Envelope(
            # A client may use an id twice; the executor may not.
            request_id=f"{incoming.client_id}#{next(self._serial)}",
            requested=incoming.requested,
            timeout=incoming.timeout,
        )
        rows = self._parser.parse(incoming.arrays, envelope)
        if rows[0].reply.tokenize_only:
            self._tokenize(incoming, rows)
            return
        if self._uploads is not None:
            rows = tuple(replace(row, adapter=self._uploads.take(row.adapter)) for row in rows)
        answer = Answer(incoming.client_id, rows, incoming.channel, self._generator, self._metrics, self._open.discard)
        self._open.add(answer)
        answer.start()

    def _tokenize(self, incoming: Incoming, rows: tuple[Row, ...]) -> None:
        """Send a row's prompt back, as token ids and as text."""
        if len(rows) > 1:
            raise InvalidRequest("tokenize_only", len(rows), "takes one row a request")
        try:
            token_ids, text = self._generator.tokenize(rows[0].request)
        except InvalidRequest as error:
            raise rows[0].client_named(error) from None
        piece = Piece(token_ids=token_ids, num_new_tokens=len(token_ids), text=text)
        incoming.channel.send(to_arrays(piece, frozenset({"output_ids", "text_output"})), is_final=True)


def _prefixes(context: ModelContext, manifest: EngineManifest) -> PrefixFile | None:
    """Where cached prefixes are kept, if anywhere."""
    directory = context.parameters.prefix_cache_directory
    if directory is None:
        return None
    return PrefixFile(context.in_repository(directory), manifest.digest, context.parameters.prefix_cache_bytes)


def _offload(context: ModelContext) -> OffloadConfig:
    """What lies behind the KV cache."""
    parameters = context.parameters
    directory = parameters.kv_cache_disk_directory
    return OffloadConfig(
        host_bytes=parameters.kv_cache_host_memory_bytes,
        disk_directory=None if directory is None else context.in_repository(directory),
        disk_bytes=parameters.kv_cache_disk_bytes,
    )


def _open_uploads(
    context: ModelContext, manifest: EngineManifest, directories: tuple[Path, ...]
) -> AdapterUploads | None:
    """Where clients' adapters go; None where the engine takes none."""
    operators = open_directories(context.engine, manifest, directories)
    if operators is None:
        return None
    parameters = context.parameters
    place = parameters.adapter_upload_directory
    return AdapterUploads(
        operators,
        manifest,
        None if place is None else context.in_repository(place),
        max_adapters=parameters.max_uploaded_adapters,
        is_allowed=parameters.allow_adapter_uploads,
    )
