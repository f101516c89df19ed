from __future__ import annotations

import hashlib
import struct

from support.sampling import make_sequence
from trierarch.python_backend.executors.sampling.uniforms import SECRET_BYTES, Uniforms
from trierarch.python_backend.sequence import Continuation

SECRET = bytes(range(SECRET_BYTES))


def test_a_position_of_a_sequence_has_one_number_however_often_it_is_asked() -> None:
    uniforms = Uniforms()
    sequence = make_sequence()
    first = uniforms.next(sequence)
    ahead = uniforms.next(Continuation(sequence, (7, 8)))
    assert uniforms.next(sequence) == first
    sequence.token_ids += [7, 8]
    assert uniforms.next(sequence) == ahead != first


def test_those_who_share_a_secret_agree_and_others_do_not() -> None:
    sequence = make_sequence()
    assert Uniforms(SECRET).next(sequence) == Uniforms(SECRET).next(sequence)
    assert Uniforms().next(sequence) != Uniforms().next(sequence)
    assert Uniforms(SECRET).next(sequence) != Uniforms(SECRET).next(make_sequence())


def test_a_seed_gives_the_numbers_that_clients_rely_on() -> None:
    digest = hashlib.blake2b(struct.pack("<QQ", 20 + 3, 2), digest_size=8).digest()
    expected = (int.from_bytes(digest, "little") >> 12) * 2.0**-52
    assert Uniforms(SECRET).next(make_sequence(output=(4, 4), seed=20, index=3)) == expected
    assert Uniforms().next(make_sequence(output=(5, 6), seed=23)) == expected
