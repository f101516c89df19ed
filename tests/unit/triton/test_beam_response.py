"""Beams of different lengths as one response, in the ranks of TensorRT-LLM's backend."""

from __future__ import annotations

import numpy as np

from trierarch.python_backend.request import FinishReason, TokenLogprob
from trierarch.python_backend.triton.beam_response import stack_beams
from trierarch.python_backend.triton.contract import TENSORRT_LLM
from trierarch.python_backend.triton.responses import Piece, to_arrays

EVERYTHING = frozenset(tensor.name for tensor in TENSORRT_LLM.outputs)


def beam(text: str, *token_ids: int, prompt: tuple[TokenLogprob | None, ...] | None = None) -> Piece:
    return Piece(
        token_ids=token_ids,
        num_new_tokens=len(token_ids),
        text=text,
        logprobs=tuple(TokenLogprob(token, -1.0) for token in token_ids),
        cum_log_prob=-float(len(token_ids)),
        prompt_logprobs=prompt,
        num_prompt_tokens=7,
        finish_reason=FinishReason.LENGTH,
    )


def test_beams_lie_along_the_second_axis() -> None:
    pieces = [beam("a", 1, 2, prompt=(None,)), beam("b", 3, 4, 5), beam("")]
    arrays = dict(stack_beams([to_arrays(piece, EVERYTHING) for piece in pieces]))
    assert next(iter(arrays)) == "output_ids"
    assert arrays["output_ids"].tolist() == [[[1, 2, -1], [3, 4, 5], [-1, -1, -1]]]
    assert arrays["sequence_length"].tolist() == [[2, 3, 0]]
    assert arrays["cum_log_probs"].tolist() == [[-2.0, -3.0, 0.0]]
    assert arrays["output_log_probs"].tolist() == [[[-1.0, -1.0, 0.0], [-1.0] * 3, [0.0] * 3]]
    assert arrays["text_output"].tolist() == [b"a", b"b", b""]
    assert arrays["finish_reason"].tolist() == [b"length"] * 3
    assert arrays["top_log_probs"].shape == (3,)
    assert arrays["prompt_log_probs"].tolist() == [b"[null]"]
    assert arrays["num_input_tokens"].tolist() == [[7]]
    assert arrays["num_output_tokens"].tolist() == [[5]]
    assert {name: array.dtype for name, array in arrays.items() if name in ("output_ids", "output_log_probs")} == {
        "output_ids": np.int32,
        "output_log_probs": np.float32,
    }


def test_one_beam_is_what_it_is_without() -> None:
    response = to_arrays(beam("a", 1, 2), EVERYTHING)
    for (name, stacked), (own_name, array) in zip(stack_beams([response]), response, strict=True):
        assert (name, stacked.tolist(), stacked.dtype) == (own_name, array.tolist(), array.dtype)
