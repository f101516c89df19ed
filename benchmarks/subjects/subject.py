"""The subject protocol: all that a figure knows of what it measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from trierarch.benchmarks.workers.protocol import Ready, TokenIds


class SubjectFailed(Exception):
    """A subject did not start, ended, timed out or gave other than what was asked."""


class AttemptFailed(Exception):
    """What was timed cannot be a figure, such as one token that took longer than many: to be tried again."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One call of `generate`."""

    seconds: float
    """From handing all prompts over until the last token of the last one, inside the subject's own process."""
    token_ids: tuple[TokenIds, ...]
    counters: Mapping[str, float] = field(default_factory=dict)
    """What the worker counted meanwhile, where it counts."""

    @property
    def num_tokens(self) -> int:
        """Output tokens of all prompts."""
        return sum(map(len, self.token_ids))


class Subject(Protocol):
    """An engine under measurement: greedy, deaf to end tokens."""

    @property
    def name(self) -> str:
        """Short and unique among the subjects of a run."""
        ...

    @property
    def pids(self) -> list[int]:
        """Roots of the process trees whose processor time is the subject's own; none while it does not run."""
        ...

    def start(self) -> Ready:
        """Start the process and load the engine. Raises SubjectFailed."""
        ...

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> Timing:
        """Send all prompts at once; each gets exactly `num_output_tokens`. Raises SubjectFailed."""
        ...

    def seconds_since_start(self) -> float:
        """Since the engine's process was started."""
        ...

    def peak_rss(self) -> int:
        """Most resident bytes so far, summed over the engine's processes; pages they share count for each."""
        ...

    def close(self) -> None:
        """End every process. Idempotent."""
        ...
