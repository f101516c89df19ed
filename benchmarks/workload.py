"""Workload: the same random prompts for every subject, new ones for every call that must not hit a prefix cache."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from trierarch.benchmarks.workers.protocol import TokenIds

FIRST_TOKEN: Final = 100
"""Below lie special tokens and single bytes."""
LAST_TOKEN: Final = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Lengths of everything that is sent. Prompts depend on the seed and on a key, and on nothing else."""

    seed: int = 20_261_121
    num_output_tokens: int = 128
    short_prompt: int = 32
    long_prompt: int = 512
    concurrencies: tuple[int, ...] = (8, 32)
    num_prefix_sharers: int = 8
    num_own_tokens: int = 16
    """Tokens behind the shared prefix."""
    num_repeats: int = 3
    num_attempts: int = 3
    """How often a disturbed repeat is tried; the least disturbed attempt counts."""
    num_ttft_calls: int = 9
    """Calls whose median is one TTFT sample: one alone is shorter than processor time is counted in."""

    @classmethod
    def quick(cls, seed: int) -> Workload:
        """Just enough to see every path run."""
        return cls(
            seed=seed,
            num_output_tokens=8,
            short_prompt=16,
            long_prompt=48,
            concurrencies=(2, 4),
            num_prefix_sharers=2,
            num_repeats=1,
            num_attempts=1,
            num_ttft_calls=1,
        )

    def with_streams(self, concurrencies: tuple[int, ...]) -> Workload:
        """The same with other numbers of concurrent streams; with its own where none are given."""
        return replace(self, concurrencies=concurrencies) if concurrencies else self

    def prompt(self, key: str, length: int) -> TokenIds:
        """`length` token ids of `key`."""
        return random.Random(f"{self.seed}/{key}").choices(range(FIRST_TOKEN, LAST_TOKEN), k=length)

    def prompts(self, key: str, lengths: Sequence[int]) -> list[TokenIds]:
        """A prompt of each length, all different."""
        return [self.prompt(f"{key}/{index}", length) for index, length in enumerate(lengths)]

    def spread(self, count: int) -> list[int]:
        """`count` lengths spread evenly from the short prompt to the long one."""
        step = (self.long_prompt - self.short_prompt) / max(1, count - 1)
        return [round(self.short_prompt + index * step) for index in range(count)]
