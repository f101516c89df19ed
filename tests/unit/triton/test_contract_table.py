"""docs/contract.md says what the code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trierarch.python_backend.triton import request_parser
from trierarch.python_backend.triton.contract import CONTRACTS, Role, Tensor
from trierarch.python_backend.triton.contract_table import table
from trierarch.python_backend.triton.inputs import Array, Inputs
from trierarch.python_backend.triton.refusals import HINTS, REFUSALS
from trierarch.python_backend.triton.request_parser import Envelope, RequestParser

PLACE = Path(__file__).parents[3] / "docs" / "contract.md"
ELSEWHERE = {"stop", "num_draft_tokens", "describe"}
"""Read by the models before the parser has its turn."""


def test_the_table_is_up_to_date(regenerate: bool) -> None:
    if regenerate:
        PLACE.write_text(table(), encoding="utf-8")
    assert PLACE.read_text(encoding="utf-8") == table(), "pytest --regenerate this test writes it anew"


def test_each_tensor_has_one_fate() -> None:
    names = {tensor.name for contract in CONTRACTS.values() for tensor in contract.inputs}
    assert not HINTS.keys() & REFUSALS.keys()
    assert HINTS.keys() | REFUSALS.keys() <= names


def _read(monkeypatch: pytest.MonkeyPatch, sent: dict[str, Array]) -> set[str]:
    """Tensors that are asked for in parsing a request."""
    seen: set[str] = set()

    class Watched(Inputs):
        def __contains__(self, name: str) -> bool:
            seen.add(name)
            return super().__contains__(name)

    with monkeypatch.context() as patch:
        patch.setattr(request_parser, "Inputs", Watched)
        patch.setattr(request_parser, "refuse_unsupported", lambda inputs: None)
        RequestParser(100, True, False).parse(sent, Envelope(request_id="r", requested=frozenset()))
    return seen


def test_what_is_honoured_is_read_and_what_is_a_hint_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    text: dict[str, Any] = {"text_input": np.array([[b"a"]], np.object_), "max_tokens": np.array([[1]], np.int32)}
    text["beam_width"] = np.array([[2]], np.int32)  # what tunes a beam search is read where there is one
    tokens: dict[str, Any] = {"input_ids": np.array([[1]], np.int32), "request_output_len": np.array([[1]], np.int32)}
    read = _read(monkeypatch, text) | _read(monkeypatch, tokens) | ELSEWHERE
    generating: tuple[Tensor, ...] = (
        *CONTRACTS[Role.TENSORRT_LLM].inputs,
        *CONTRACTS[Role.TENSORRT_LLM_BLS].inputs,
    )
    honoured = {tensor.name for tensor in generating} - HINTS.keys() - REFUSALS.keys()
    assert honoured <= read
    assert not HINTS.keys() & read
