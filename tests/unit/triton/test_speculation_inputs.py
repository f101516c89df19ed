"""What clients say about guessing ahead: TensorRT-LLM's tensors and ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import SpeculationParams
from trierarch.python_backend.triton.inputs import Array, Inputs
from trierarch.python_backend.triton.speculation_inputs import read_speculation


def read(**tensors: Any) -> SpeculationParams:
    """Of one row: a number becomes (1, 1), a list (1, n)."""
    arrays: dict[str, Array] = {}
    for name, value in tensors.items():
        row = value if isinstance(value, list) else [value]
        dtype: Any = np.object_ if name == "drafters" else np.int32
        arrays[name] = np.array([[item.encode() if isinstance(item, str) else item for item in row]], dtype)
    return read_speculation(Inputs(arrays))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({}, SpeculationParams()),
        ({"max_draft_tokens": 3}, SpeculationParams(max_draft_tokens=3)),
        ({"num_draft_tokens": 5}, SpeculationParams(max_draft_tokens=5)),
        ({"num_draft_tokens": 0}, SpeculationParams(max_draft_tokens=0)),
        ({"num_draft_tokens": 4, "max_draft_tokens": 4}, SpeculationParams(max_draft_tokens=4)),
        ({"draft_input_ids": [7, 8]}, SpeculationParams(draft_token_ids=(7, 8))),
        ({"draft_input_ids": []}, SpeculationParams()),
        ({"drafters": []}, SpeculationParams()),
        ({"drafters": [""]}, SpeculationParams()),
        (
            {"drafters": ["suffix", "", "prompt_lookup", "suffix"]},
            SpeculationParams(drafters=(DrafterKind.SUFFIX, DrafterKind.PROMPT_LOOKUP)),
        ),
    ],
)
def test_what_is_sent_is_what_is_asked(sent: dict[str, Any], expected: SpeculationParams) -> None:
    assert read(**sent) == expected


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (
            {"drafters": ["suffix", "medusa"]},
            "drafters is 'medusa': known are prompt_lookup, suffix, draft_model, eagle3, mtp",
        ),
        ({"max_draft_tokens": -1}, "max_draft_tokens is -1: must be at least 0"),
        ({"num_draft_tokens": -1}, "num_draft_tokens is -1: must be at least 0"),
        (
            {"num_draft_tokens": 2, "max_draft_tokens": 3},
            "max_draft_tokens is 3: contradicts num_draft_tokens, which is 2",
        ),
        (
            {"max_draft_tokens": 0, "drafters": ["suffix"]},
            "drafters is 'suffix': contradicts max_draft_tokens, which is 0",
        ),
        (
            {"num_draft_tokens": 0, "drafters": ["suffix"]},
            "drafters is 'suffix': contradicts num_draft_tokens, which is 0",
        ),
        ({"max_draft_tokens": 0, "draft_input_ids": [1]}, r"draft_input_ids is \(1,\): contradicts max_draft_tokens"),
        ({"max_draft_tokens": [1, 2]}, "max_draft_tokens is .* takes one value a row"),
    ],
)
def test_what_cannot_be_is_named_as_the_client_knows_it(sent: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{says}"):
        read(**sent)
