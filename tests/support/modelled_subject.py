"""A benchmark's subject whose every figure can be worked out by hand, and a machine that is always quiet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from trierarch.benchmarks.subjects.subject import Timing
from trierarch.benchmarks.workers.protocol import Ready, TokenIds

PREFILL: Final = 0.001
STEP: Final = 0.01
START: Final = 1.5
PEAK_RSS: Final = 2 * 10**9


class ModelledSubject:
    """Takes PREFILL for each prompt token that starts no earlier prompt, and STEP for each output token of the batch."""

    def __init__(self, name: str = "modelled", pace: float = 1.0, answer: TokenIds | None = None) -> None:
        """Everything takes `pace` times as long; the first tokens of each output are `answer`."""
        self.name = name
        self.pids: list[int] = []
        self.num_starts = 0
        self.is_closed = False
        self._pace = pace
        self._answer = answer or []
        self._seen: set[tuple[int, ...]] = set()

    def start(self) -> Ready:
        """Be there at once."""
        self.num_starts += 1
        self.is_closed = False
        return Ready("1.0", {"pace": self._pace})

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> Timing:
        """Model the time it takes."""
        num_computed = sum(len(prompt) - self._num_cached(prompt) for prompt in prompts)
        self._seen |= {tuple(prompt) for prompt in prompts}
        seconds = self._pace * (PREFILL * num_computed + STEP * num_output_tokens)
        output = (self._answer + [0] * num_output_tokens)[:num_output_tokens]
        return Timing(seconds, tuple(list(output) for _ in prompts))

    def seconds_since_start(self) -> float:
        """As if the model took long to load."""
        return self._pace * START

    def peak_rss(self) -> int:
        """The same always."""
        return PEAK_RSS

    def close(self) -> None:
        """Remember it."""
        self.is_closed = True

    def _num_cached(self, prompt: TokenIds) -> int:
        return max((len(seen) for seen in self._seen if tuple(prompt[: len(seen)]) == seen), default=0)


class Quiet:
    """A window during which others did nothing."""

    def __init__(self, roots: Callable[[], list[int]]) -> None:
        """Take any roots."""

    def share(self) -> float:
        """Nothing."""
        return 0.0
