"""Variant: a worker asked in one way of several, beside others that share its process, its weights and its memory."""

from __future__ import annotations

import hashlib

from trierarch.benchmarks.subjects.subject import Timing
from trierarch.benchmarks.subjects.worker import WorkerSubject
from trierarch.benchmarks.workers.protocol import Ready, Speculated, Steering, TokenIds


class Variant:
    """Implements Subject. Between variants no prefix and no history is shared, nor between calls of other prompts.

    The first variant that starts starts the worker, and the first that closes ends it for all.
    """

    def __init__(self, name: str, worker: WorkerSubject, speculation: Speculated) -> None:
        """`speculation` is how `worker` guesses when asked through this variant."""
        self.name = name
        self._worker = worker
        self._speculation = speculation

    @property
    def pids(self) -> list[int]:
        """See Subject.pids."""
        return self._worker.pids

    def start(self) -> Ready:
        """See Subject.start."""
        return self._worker.ready or self._worker.start()

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> Timing:
        """See Subject.generate. Calls with the same prompts are of one tenant, and may use what earlier ones left."""
        tenant = hashlib.sha256(f"{self.name}/{prompts}".encode()).hexdigest()
        return self._worker.generate(prompts, num_output_tokens, Steering(self._speculation, tenant))

    def seconds_since_start(self) -> float:
        """See Subject.seconds_since_start."""
        return self._worker.seconds_since_start()

    def peak_rss(self) -> int:
        """See Subject.peak_rss."""
        return self._worker.peak_rss()

    def close(self) -> None:
        """See Subject.close."""
        self._worker.close()
