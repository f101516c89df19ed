"""Sender: carries one sequence through the library, with its adapter."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Final

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.errors import ExecutorFailed, ServingError
from trierarch.python_backend.executors.tensorrt_llm.adapter_line import AdapterLine
from trierarch.python_backend.executors.tensorrt_llm.disk_adapter import DiskAdapter
from trierarch.python_backend.executors.tensorrt_llm.failures import Failure, judge
from trierarch.python_backend.executors.tensorrt_llm.library import Library
from trierarch.python_backend.executors.tensorrt_llm.llm import LLM, Generation
from trierarch.python_backend.executors.tensorrt_llm.sampling import sampling_arguments
from trierarch.python_backend.executors.tensorrt_llm.stream import Stream

logger = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 8
"""To send a request whose adapter the library has let go of, or finds no room for."""
_FIRST_PAUSE_SECONDS: Final = 0.02
"""Before the second attempt; doubled for each one after it."""


class Sender:
    """Of one engine; the executor's thread alone calls it."""

    def __init__(
        self, library: Library, manifest: EngineManifest, line: AdapterLine | None, salts_prompts: bool
    ) -> None:
        """`line`: of the engine's adapters; None where it takes none. `salts_prompts`: as Abilities has it."""
        self._library = library
        self._manifest = manifest
        self._line = line
        self._salts_prompts = salts_prompts

    async def carry(self, llm: LLM, stream: Stream, on_step: Callable[[], None]) -> None:
        """Send a sequence, and give its stream whatever comes until it is over; `on_step` is told of each step.

        Raises:
            ServingError: its adapter cannot be used.
            Exception: whatever the library raises.
        """
        adapter = stream.request.adapter
        if adapter is None or self._line is None:
            await self._send(llm, stream, on_step, None)
            return
        active = await self._line.acquire(adapter)
        try:
            assert isinstance(active.weights, DiskAdapter)
            await self._send_with(llm, stream, on_step, adapter, active.weights)
        finally:
            self._line.release(active)

    async def _send_with(
        self, llm: LLM, stream: Stream, on_step: Callable[[], None], adapter: Adapter, disk: DiskAdapter
    ) -> None:
        """Send it with its adapter; again where the library lacks that and no token has come out."""
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                await self._send(llm, stream, on_step, (adapter, disk))
                return
            except Exception as error:
                failure = judge(error)
                is_curable = failure in (Failure.NOT_CACHED, Failure.CACHE_FULL) and stream.num_tokens == 0
                if not is_curable or attempt == MAX_ATTEMPTS:
                    raise
                logger.info("request %s is sent again with its adapter: %s", stream.request.request_id, error)
                if failure is Failure.NOT_CACHED and attempt > 1:
                    disk.renew()  # The library believes that it has it, and has not.
            await asyncio.sleep(pause)
            pause *= 2

    async def _send(
        self, llm: LLM, stream: Stream, on_step: Callable[[], None], adapted: tuple[Adapter, DiskAdapter] | None
    ) -> None:
        manifest, request = self._manifest, stream.request
        arguments = sampling_arguments(
            request.sampling,
            stream.index,
            manifest.tokens.eos,
            manifest.tokens.pad,
            manifest.architecture.vocab_size,
            stream.logits,
        )
        lora_request = None
        if adapted is not None:
            adapter, disk = adapted
            lora_request = self._library.lora_request(adapter.name, disk.task_id, disk.path)
        # Of reused blocks no logits are computed: a salt that nobody else has finds none.
        salt = secrets.token_hex(16) if stream.logits.of_prompt and self._salts_prompts else request.cache_salt
        generation = self._library.generate(llm, request, arguments, lora_request, salt)
        stream.start(generation)
        async for step in generation:
            on_step()
            if stream.awaits_prompt(step):
                await asyncio.to_thread(stream.read_prompt, step)
            _take(stream, step)
            if stream.is_over:
                return


def _take(stream: Stream, step: Generation) -> None:
    """Give a stream what came; an error in that is not the library's, and no sign of its end."""
    try:
        stream.take(step)
    except ServingError:
        raise
    except Exception as error:
        logger.exception("request %s: a step is unusable", stream.request.request_id)
        raise ExecutorFailed("what TensorRT-LLM returned is unusable; see the server's log") from error
