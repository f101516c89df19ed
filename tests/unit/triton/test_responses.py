"""Names, order, ranks and types of what clients read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from trierarch.python_backend.request import FinishReason, TokenLogprob, Usage
from trierarch.python_backend.triton.contract import TENSORRT_LLM
from trierarch.python_backend.triton.responses import PERF_METRICS, Piece, to_arrays

USAGE = Usage(
    num_prompt_tokens=4,
    num_cached_tokens=0,
    num_output_tokens=2,
    arrival_ns=10,
    first_scheduled_ns=20,
    first_token_ns=30,
    last_token_ns=40,
    num_new_blocks=3,
    num_reused_blocks=2,
    num_draft_tokens=4,
    num_accepted_draft_tokens=1,
)
PIECE = Piece(
    token_ids=(7, 8),
    num_new_tokens=2,
    text="né",
    logprobs=(TokenLogprob(7, -0.5), TokenLogprob(8, -1.5, ((9, -1.0), (8, -1.5)))),
    cum_log_prob=-2.0,
    prompt_logprobs=(None, TokenLogprob(1, -3.0)),
    context_logits=tuple(np.full(5, position, np.float32) for position in range(4)),
    generation_logits=tuple(np.full(5, position, np.float32) for position in (7, 8)),
    num_prompt_tokens=4,
    batch_index=1,
    sequence_index=2,
    usage=USAGE,
    finish_reason=FinishReason.LENGTH,
)
EVERYTHING = frozenset(tensor.name for tensor in TENSORRT_LLM.outputs)


def test_output_ids_come_first_and_have_rank_three() -> None:
    arrays = to_arrays(PIECE, EVERYTHING)
    name, array = arrays[0]
    assert name == "output_ids"
    assert array.shape == (1, 1, 2)
    assert [name for name, _ in arrays[:8]] == [
        "output_ids",
        "sequence_length",
        "cum_log_probs",
        "output_log_probs",
        "context_logits",
        "generation_logits",
        "batch_index",
        "sequence_index",
    ]


def test_ranks_and_types_are_the_contracts() -> None:
    numpy_types = {"INT32": "int32", "INT64": "int64", "FP32": "float32", "STRING": "object"}
    declared = {tensor.name: tensor for tensor in TENSORRT_LLM.outputs}
    for name, array in to_arrays(PIECE, EVERYTHING):
        tensor = declared[name]
        assert str(array.dtype) == numpy_types[tensor.dtype], name
        # Strings have rank 1 on the wire; everything else has a batch dimension.
        assert array.ndim == (1 if tensor.dtype == "STRING" else 1 + len(tensor.dims)), name


def test_logits_have_a_row_for_each_token() -> None:
    arrays = dict(to_arrays(PIECE, EVERYTHING))
    assert arrays["context_logits"].shape == (1, 4, 5)
    assert arrays["generation_logits"].shape == (1, 1, 2, 5)
    assert arrays["context_logits"][0, :, 0].tolist() == [0, 1, 2, 3]
    assert arrays["generation_logits"][0, 0, :, 4].tolist() == [7, 8]
    assert not dict(to_arrays(Piece(token_ids=(), num_new_tokens=0), EVERYTHING)).keys() & {
        "context_logits",
        "generation_logits",
    }


def test_values() -> None:
    values = {name: array.reshape(-1).tolist() for name, array in to_arrays(PIECE, EVERYTHING)}
    assert values["text_output"] == ["né".encode()]
    assert values["finish_reason"] == [b"length"]
    assert values["output_log_probs"] == [-0.5, -1.5]
    assert values["kv_cache_alloc_total_blocks"] == [5]
    assert values["acceptance_rate"] == [0.25]
    assert (values["total_accepted_draft_tokens"], values["total_draft_tokens"]) == ([1], [4])
    assert values["arrival_time_ns"] == [10]
    assert json.loads(values["top_log_probs"][0])[1] == {"token_id": 8, "logprob": -1.5, "top": [[9, -1.0], [8, -1.5]]}
    assert json.loads(values["prompt_log_probs"][0]) == [None, {"token_id": 1, "logprob": -3.0, "top": []}]


def test_a_sequence_without_drafts_accepted_none_of_none() -> None:
    usage = replace(USAGE, num_draft_tokens=0, num_accepted_draft_tokens=0)
    arrays = dict(to_arrays(replace(PIECE, usage=usage), EVERYTHING))
    for name in ("acceptance_rate", "total_accepted_draft_tokens", "total_draft_tokens"):
        assert arrays[name].tolist() == [[0]]


def test_before_the_end_there_is_no_reason_and_the_metrics_are_zero() -> None:
    arrays = dict(to_arrays(Piece(token_ids=(), num_new_tokens=0), EVERYTHING))
    assert not arrays.keys() & {"finish_reason", "prompt_log_probs"}
    assert arrays.keys() >= PERF_METRICS  # the real streaming client reads them from every response
    assert not any(arrays[name].any() for name in PERF_METRICS)


def test_no_token_is_a_length_of_zero() -> None:
    arrays = dict(to_arrays(Piece(token_ids=(), num_new_tokens=0), EVERYTHING))
    assert arrays["output_ids"].shape == (1, 1, 0)
    assert np.array_equal(arrays["sequence_length"], [[0]])


def test_only_what_is_asked_for() -> None:
    assert [name for name, _ in to_arrays(PIECE, frozenset({"text_output"}))] == ["text_output"]


def test_a_gateways_outputs() -> None:
    piece = replace(PIECE, token_bytes={7: b"\xc3", 8: b"\xa9"})
    told = {name: array for name, array in to_arrays(piece, frozenset({"usage", "token_bytes"}))}
    assert json.loads(told["token_bytes"].item()) == {"7": "Ã", "8": "©"}
    assert json.loads(told["usage"].item()) == {
        "prompt_tokens": 4,
        "cached_tokens": 0,
        "completion_tokens": 2,
        "draft_tokens": 4,
        "accepted_draft_tokens": 1,
    }
    assert "usage" not in dict(to_arrays(replace(piece, finish_reason=None), EVERYTHING))
