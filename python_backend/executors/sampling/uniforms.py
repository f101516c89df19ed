"""Uniforms: the chance that sampling runs on, one number for each token drawn."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Final

from trierarch.python_backend.sequence import Context

# 52 bits, not 53: the largest number times a float64 total then stays below that total.
_NUM_BITS: Final = 52
SECRET_BYTES: Final = 8


class Uniforms:
    """Numbers in [0, 1), counter-based: one output position of one sequence always has the same.

    So neither batching, nor preemption, nor whether a token was guessed ahead changes what is drawn. A seeded
    sequence's number depends on its seed, index and output position alone; the others' also on a secret.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        """secret: SECRET_BYTES of entropy, None for the operating system's. Those who share it agree."""
        self._secret = os.urandom(SECRET_BYTES) if secret is None else secret

    def next(self, sequence: Context) -> float:
        """The number for the next token of `sequence`."""
        seed = sequence.request.sampling.seed
        if seed is None:
            bits = _bits(sequence.sequence_id, sequence.num_output_tokens, self._secret)
        else:
            bits = _bits((seed + sequence.index) % 2**64, sequence.num_output_tokens)
        return bits * 2.0**-_NUM_BITS


def _bits(stream: int, position: int, key: bytes = b"") -> int:
    """The random bits of (stream, position): BLAKE2b as a counter-based generator, one hash a number."""
    digest = hashlib.blake2b(struct.pack("<QQ", stream, position), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") >> (64 - _NUM_BITS)
