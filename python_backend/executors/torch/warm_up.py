"""WarmUp: what the first requests would wait for is done before there is one.

Steps of sequences that nobody asked for run as everybody's do, over the block that pads: kernels are compiled, and decode
steps of the common sizes recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

import torch

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.adapter_check import manifest_of
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.graphed_model import GraphedModel
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.static_step import StepLayout, size_of
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence as LiveSequence

logger = logging.getLogger(__name__)

MAX_DECODE_STEPS: Final = 64
"""Recorded at load; others when they first come."""
MAX_SECONDS: Final = 20.0
"""For recording; kernels are compiled however long it takes, since no request could do without."""
_SECONDS_PER_LINE: Final = 5.0

Clock = Callable[[], float]


class WarmUp:
    """Steps of nobody, for an engine."""

    def __init__(self, manifest: EngineManifest, model: EagerModel, kv: KvArrays, graphs: GraphedModel | None) -> None:
        """graphs: of `model`, over `kv`; None where all steps run eagerly."""
        self._manifest = manifest
        self._kv = kv
        self._graphs = graphs
        # Looked up, and found to change nothing.
        nothing = AdapterTensors(manifest_of({}, manifest, "nobody"), {})
        self._adapter = None if manifest.lora is None else model.arrange(nothing)

    @torch.inference_mode()
    def run(self, run: Callable[[Plan], object], clock: Clock = time.monotonic) -> None:
        """Run the steps by `run`, as far as there is time, and say so in the log. What fails is for requests to fail at."""
        try:
            self._run(run, clock)
            run(Plan((), tuple(_sequence_id(index) for index in range(self._manifest.limits.max_batch_size))))
        except Exception:
            logger.exception("%s: a step failed before the first request", self._manifest.name)
        self._kv.clear(torch.tensor([self._kv.padding_block], device=self._kv.array.device))

    def _run(self, run: Callable[[Plan], object], clock: Clock) -> None:
        started = clock()
        for plan in self.prompts():
            run(plan)
        compiled = clock()
        self._record(run, clock, compiled)
        logger.info(
            "%s: prompts' kernels ready in %.1f s, %d decode steps recorded in %.1f s",
            self._manifest.name,
            compiled - started,
            0 if self._graphs is None else self._graphs.num_recorded,
            clock() - compiled,
        )

    def _record(self, run: Callable[[Plan], object], clock: Clock, started: float) -> None:
        name, told = self._manifest.name, started
        plans = self.decode_steps()
        for done, plan in enumerate(plans):
            now = clock()
            if self._graphs is None or not self._graphs.is_recording:
                return
            if now - started > MAX_SECONDS:
                logger.warning("%s: no time for %d of %d decode steps", name, len(plans) - done, len(plans))
                return
            if now - told > _SECONDS_PER_LINE:
                logger.info("%s: recording decode steps, %d of %d so far", name, done, len(plans))
                told = now
            run(plan)

    def prompts(self) -> Iterator[Plan]:
        """Of each length that kernels may be compiled anew for, at the beginning and at the end of a context.

        One sequence each, but as many of the longest as a step takes. Those that are as short as a token and its drafts run
        as steps that are recorded.
        """
        limits = self._manifest.limits
        longest = min(limits.max_num_tokens, limits.max_seq_len)
        most_recorded = 0 if self._graphs is None else self._graphs.layout.max_queries
        powers = (1 << bit for bit in range(longest.bit_length()))
        for num_tokens in sorted({longest, *(one for one in powers if one > most_recorded)}):
            for start in (0, limits.max_seq_len - num_tokens):
                for slots in ((), (1,)) if self._adapter is not None else ((),):
                    count = limits.max_num_tokens // longest if num_tokens == longest else 1
                    yield self.plan(count, start=start, num_tokens=num_tokens, slots=slots)

    def decode_steps(self) -> list[Plan]:
        """The more common come first, of their like the larger, so that the smaller find room in their memory."""
        return [] if self._graphs is None else list(islice(self._decode_steps(self._graphs.layout), MAX_DECODE_STEPS))

    def _decode_steps(self, layout: StepLayout) -> Iterator[Plan]:
        limits = self._manifest.limits
        sizes = sorted({size_of(count) for count in range(1, limits.max_batch_size + 1)}, reverse=True)
        common = [size for size in sizes if size == sizes[0] or size.bit_count() == 1]
        yield from (self.plan(size) for size in common)
        if self._adapter is not None and layout.adapters is not None:
            yield from (self.plan(size, slots=slots) for size in common for slots in layout.adapters.mixes(size))
        yield from (self.plan(size) for size in sizes if size not in common)
        if self._manifest.speculation is not None:
            lengths = {layout.num_queries_of(count) for count in range(2, layout.max_queries + 1)}
            for num_queries in sorted(lengths, reverse=True):
                fitting = (size for size in common if size * num_queries <= limits.max_num_tokens)
                yield from (self.plan(size, num_drafts=num_queries - 1) for size in fitting)

    def plan(
        self, count: int, *, start: int = 0, num_tokens: int = 1, num_drafts: int = 0, slots: Sequence[int] = ()
    ) -> Plan:
        """`count` sequences alike, as many as the engine takes. slots: of the adapters of the first ones."""
        num_blocks = -(-(start + num_tokens + num_drafts) // self._manifest.kv_cache.block_size)
        items = []
        for index in range(min(count, self._manifest.limits.max_batch_size)):
            sequence = LiveSequence(_sequence_id(index), _REQUEST, 0, [0] * (start + num_tokens))
            sequence.block_table = [self._kv.padding_block] * num_blocks
            if index < len(slots) and self._adapter is not None:
                sequence.adapter = ActiveAdapter("", slots[index], self._adapter)
            items.append(ScheduledSequence(sequence, start, num_tokens, (0,) * num_drafts, samples=True))
        return Plan(tuple(items))


def _sequence_id(index: int) -> int:
    """That no sequence has."""
    return -1 - index


_REQUEST: Final = Request(
    request_id="", prompt_token_ids=(0,), sampling=SamplingParams(max_tokens=1, temperature=0.0), arrival_time=0.0
)
