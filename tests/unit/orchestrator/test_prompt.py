from __future__ import annotations

import pytest

from trierarch.orchestrator.prompt import Chunk, Prompt, join, measure
from trierarch.python_backend.triton.contract import TENSORRT_LLM


def chunk(text: str, received: float, *, index: int = 0, outputs: int = 0, reason: str | None = None) -> Chunk:
    return Chunk(
        text=text,
        index=index,
        token_ids=(),
        finish_reason=reason,
        num_input_tokens=7,
        num_output_tokens=outputs,
        received=received,
    )


def test_nothing_given_sends_no_sampling_tensor() -> None:
    names = {name for name, _, _ in Prompt(text="hi", max_tokens=4).tensors(stream=True)}

    assert not names & {"temperature", "top_k", "top_p", "min_p", "seed", "stop_words", "num_return_sequences"}
    assert not names & {"max_draft_tokens", "drafters"}


def test_every_tensor_is_one_of_the_text_door_with_its_type() -> None:
    prompt = Prompt(
        text="hi", max_tokens=4, chat=True, temperature=0.5, top_k=0, top_p=1.0, min_p=0.1, seed=3, stop=("a", "b"), n=2,
        max_draft_tokens=0, drafters=("suffix",),
    )  # fmt: skip
    contract = {tensor.name: tensor.dtype.value.replace("STRING", "BYTES") for tensor in TENSORRT_LLM.inputs}

    sent = {name: datatype for name, datatype, _ in prompt.tensors(stream=False)}

    assert sent.items() <= contract.items()
    assert sent.keys() >= {"max_draft_tokens", "drafters"}


def test_answers_that_come_mixed_are_told_apart() -> None:
    chunks = [
        chunk("a", 1.0, index=0, outputs=1),
        chunk("x", 1.1, index=1, outputs=1),
        chunk("b", 1.2, index=0, outputs=1, reason="stop"),
        chunk("y", 1.3, index=1, outputs=2, reason="length"),
    ]

    first, second = join(chunks)

    assert (first.text, first.finish_reason, first.num_output_tokens) == ("ab", "stop", 2)
    assert (second.text, second.finish_reason, second.num_output_tokens) == ("xy", "length", 3)


def test_figures_count_from_sending_to_the_first_and_last_text() -> None:
    chunks = [chunk("", 10.5), chunk("a", 11.0, outputs=1), chunk("b", 13.0, outputs=4), chunk("", 14.0)]

    figures = measure(10.0, chunks)

    assert (figures.ttft, figures.seconds) == (1.0, 3.0)
    assert figures.tokens_per_second == pytest.approx(4 / 2.0)
    assert (figures.num_input_tokens, figures.num_output_tokens) == (7, 5)


def test_an_empty_exchange_has_figures_too() -> None:
    assert measure(10.0, []).tokens_per_second == 0.0
