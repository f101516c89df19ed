"""Beam search, in the names that vLLM's API has for it, as the model's tensors."""

from __future__ import annotations

from typing import Final

from trierarch.orchestrator.gateway.fields import Fields
from trierarch.orchestrator.gateway.tensors import Tensors

BEAMS: Final = frozenset({"best_of", "use_beam_search", "length_penalty", "early_stopping"})
"""Fields that `write_beams` reads."""
DEFAULT_LENGTH_PENALTY: Final = 1.0
"""vLLM's; the contract's own is 0."""


def write_beams(fields: Fields, tensors: Tensors, n: int) -> bool:
    """Write how beams are searched for the `n` best answers; whether they are.

    `best_of` beams are kept, `n` if it is left out. One beam is what is drawn greedily, as it is anyway then.

    Raises:
        ApiError: a field has another type, is out of range, or is for beams where none are searched.
    """
    width = fields.integer("best_of", 1)
    if not fields.flag("use_beam_search"):
        if width not in (None, n):
            fields.fail("best_of", "drawn answers are not ranked; send n alone, or use_beam_search: true")
        for name in ("length_penalty", "early_stopping"):
            if name in fields:
                fields.fail(name, "is for beams; send use_beam_search: true, or leave it out")
        return False
    if width is not None and width < n:
        fields.fail("best_of", f"must be at least n, which is {n}: no more answers are kept")
    if fields.raw("logprobs") is not None and fields.raw("logprobs") is not False:
        fields.fail("logprobs", "does not go with use_beam_search; leave it out, or draw the answers")
    if (width or n) == 1:
        return False
    tensors.integer("beam_width", width or n)
    tensors.integer("num_return_sequences", n)
    penalty = fields.number("length_penalty")
    tensors.number("len_penalty", DEFAULT_LENGTH_PENALTY if penalty is None else penalty)
    tensors.flag("early_stopping", fields.flag("early_stopping"))
    tensors.flag("return_num_output_tokens")
    return True
