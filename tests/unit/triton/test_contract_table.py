"""docs/contract.md says what the code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.trtllm_specs import trtllm_spec
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import Flow, KvCache, KvType
from trierarch.builder.tensorrt_llm.arguments import build_config, llm_args
from trierarch.builder.tensorrt_llm.releases import RELEASES
from trierarch.python_backend.executors.tensorrt_llm.abilities import abilities_of
from trierarch.python_backend.triton import request_parser
from trierarch.python_backend.triton.abilities_table import COLUMNS, OPTIONS, record_of
from trierarch.python_backend.triton.contract import CONTRACTS, Role, Tensor
from trierarch.python_backend.triton.contract_table import table
from trierarch.python_backend.triton.inputs import Array, Inputs
from trierarch.python_backend.triton.refusals import HINTS, REFUSALS
from trierarch.python_backend.triton.request_parser import Envelope, RequestParser

PLACE = Path(__file__).parents[3] / "docs" / "contract.md"
ELSEWHERE = {"stop", "num_draft_tokens", "describe", "kv_events_since"}
"""Read by the models before the parser has its turn."""


def test_the_table_is_up_to_date(regenerate: bool) -> None:
    if regenerate:
        PLACE.write_text(table(), encoding="utf-8")
    assert PLACE.read_text(encoding="utf-8") == table(), "pytest --regenerate this test writes it anew"


def test_each_tensor_has_one_fate() -> None:
    names = {tensor.name for contract in CONTRACTS.values() for tensor in contract.inputs}
    fates = (HINTS, REFUSALS)
    assert sum(map(len, fates)) == len(set().union(*fates))
    assert set().union(*fates) <= names


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


@pytest.mark.parametrize("release, flow", COLUMNS)
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_the_table_goes_by_what_the_builder_writes(release: str, flow: Flow, options: tuple[str, ...]) -> None:
    kv_cache = KvCache(
        dtype=KvType.BFLOAT16, bytes_per_token=256, enable_prefix_caching="--no-prefix-caching" not in options
    )
    config = BuildConfig(model="demo", output=Path("out"), gather_logits="--gather-logits" in options)
    spec = trtllm_spec(release, flow, config=config, kv_cache=kv_cache)
    built = record_of(release, flow, options).model_copy(
        update={"llm_args": llm_args(spec), "build_config": build_config(spec)}
    )
    assert abilities_of(built) == abilities_of(record_of(release, flow, options))


def test_the_table_has_every_flow_of_every_release() -> None:
    assert set(COLUMNS) == {(name, flow) for name, release in RELEASES.items() for flow in release.flows}
