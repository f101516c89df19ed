"""The contract's tensors that ask for a beam search."""

from __future__ import annotations

from trierarch.python_backend.beams.params import BeamParams, EarlyStopping
from trierarch.python_backend.triton.inputs import Inputs, either


def read_beams(inputs: Inputs) -> BeamParams | None:
    """How beams are to be searched; None without a beam_width above 1.

    Raises:
        InvalidRequest: a value is out of range, or len_penalty and length_penalty differ.
    """
    width = inputs.integer("beam_width")
    if width is None or 0 <= width <= 1:
        return None
    return BeamParams(
        width=width,
        length_penalty=either(inputs.number, inputs, "len_penalty", "length_penalty") or 0.0,
        early_stopping=EarlyStopping.LIKELY if inputs.flag("early_stopping") is False else EarlyStopping.FULL,
        diversity_rate=inputs.number("beam_search_diversity_rate") or 0.0,
    )


def num_responses(inputs: Inputs) -> int:
    """Responses that a row ends with: one for each sequence, but one for all beams."""
    return 1 if read_beams(inputs) is not None else inputs.integer("num_return_sequences") or 1
