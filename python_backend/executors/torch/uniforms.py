"""Uniforms: the chance that sampling runs on, one number for each token drawn."""

from __future__ import annotations

import hashlib
import random
import struct

from trierarch.python_backend.sequence import Context

# 52 bits, not 53: the largest number times a float64 total then stays below that total.
_NUM_BITS = 52


class Uniforms:
    """Numbers in [0, 1): counter-based for seeded sequences, from the operating system's entropy for the others.

    A seeded sequence's number depends on its seed, index and output position alone, so neither batching nor
    preemption changes what it draws.
    """

    def __init__(self) -> None:
        self._unseeded = random.Random()

    def next(self, sequence: Context) -> float:
        """The number for the next token of `sequence`."""
        seed = sequence.request.sampling.seed
        if seed is None:
            bits = self._unseeded.getrandbits(_NUM_BITS)
        else:
            bits = seeded_bits((seed + sequence.index) % 2**64, sequence.num_output_tokens)
        return bits * 2.0**-_NUM_BITS


def seeded_bits(seed: int, position: int) -> int:
    """The random bits of (seed, position): BLAKE2b as a counter-based generator, one hash a number."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _NUM_BITS)
