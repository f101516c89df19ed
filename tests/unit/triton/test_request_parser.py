"""What clients send, read the way TensorRT-LLM's backend reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.beams.params import BeamParams, EarlyStopping
from trierarch.python_backend.errors import InvalidRequest, UnknownAdapter, UnusableAdapter
from trierarch.python_backend.request import Guide, GuideKind, SamplingParams, SpeculationParams
from trierarch.python_backend.triton.contract import TENSORRT_LLM, DataType
from trierarch.python_backend.triton.inputs import Array
from trierarch.python_backend.triton.request_parser import Envelope, RequestParser, Row, client_named

VOCAB_SIZE = 100
EVERYTHING = frozenset(tensor.name for tensor in TENSORRT_LLM.outputs)
NUMPY_TYPES: dict[DataType, Any] = {
    DataType.BOOL: np.bool_,
    DataType.INT32: np.int32,
    DataType.UINT64: np.uint64,
    DataType.FP32: np.float32,
    DataType.FP16: np.float16,
    DataType.UINT8: np.uint8,
    DataType.INT64: np.int64,
    DataType.STRING: np.object_,
}
TYPES = {tensor.name: NUMPY_TYPES[tensor.dtype] for tensor in TENSORRT_LLM.inputs}


def arrays(**tensors: Any) -> dict[str, Array]:
    """Tensors of one row in the contract's types: a scalar becomes (1, 1), a list (1, n)."""
    sent = {}
    for name, value in tensors.items():
        row = value if isinstance(value, list) else [value]
        sent[name] = np.array([[item.encode() if isinstance(item, str) else item for item in row]], TYPES[name])
    return sent


def parse(requested: frozenset[str] = EVERYTHING, is_decoupled: bool = True, **tensors: Any) -> Row:
    (row,) = RequestParser(VOCAB_SIZE, is_decoupled, False).parse(
        arrays(**tensors), Envelope(request_id="r", requested=requested)
    )
    return row


def text(**tensors: Any) -> Row:
    return parse(**({"text_input": "hello", "max_tokens": 8} | tensors))


def tokens(**tensors: Any) -> Row:
    return parse(**({"input_ids": [1, 2, 3], "request_output_len": 8} | tensors))


# The rule of the contract: greedy, whatever the temperature, until something asks for more than one token.
GREEDY = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_p": 0.0},
    {"top_k": 1, "top_p": 0.0, "temperature": 1.0},
    {"top_k": 0, "top_p": 0.0},
    {"top_k": 1, "top_p": 0.9},
    {"top_p": 0.9, "temperature": 0.0},
]
SAMPLED = [
    ({"top_k": 50}, (50, 1.0, 0.0)),
    ({"top_k": 50, "top_p": 0.0}, (50, 1.0, 0.0)),
    ({"top_p": 0.9}, (0, 0.9, 0.0)),
    ({"top_k": 5, "top_p": 0.9}, (5, 0.9, 0.0)),
    ({"top_k": 0}, (0, 1.0, 0.0)),
    ({"top_p": 1.0}, (0, 1.0, 0.0)),
    ({"min_p": 0.1}, (0, 1.0, 0.1)),
]


@pytest.mark.parametrize("sent", GREEDY)
def test_greedy_unless_more_is_asked_for(sent: dict[str, float]) -> None:
    assert text(**sent).request.sampling.is_greedy


@pytest.mark.parametrize(("sent", "expected"), SAMPLED)
def test_sampling_when_asked_for(sent: dict[str, float], expected: tuple[int, float, float]) -> None:
    sampling = text(**sent).request.sampling
    assert not sampling.is_greedy
    assert (sampling.top_k, sampling.top_p, sampling.min_p) == expected


def test_both_doors_say_the_same() -> None:
    options = {"temperature": 0.5, "min_tokens": 2, "seed": 2**63, "repetition_penalty": 1.5, "num_return_sequences": 2}
    of_text = text(top_k=7, top_p=0.5, **options).request.sampling
    of_tokens = tokens(runtime_top_k=7, runtime_top_p=0.5, **options).request.sampling
    assert of_text == of_tokens
    assert of_text == SamplingParams(
        max_tokens=8, min_tokens=2, temperature=0.5, top_k=7, top_p=0.5, seed=2**63, repetition_penalty=1.5, n=2
    )


def test_the_real_token_client() -> None:
    """inflight_batcher_llm_client.py with its defaults."""
    row = tokens(
        input_lengths=3, beam_width=1, temperature=1.0, streaming=True, end_id=-1, pad_id=50256, runtime_top_k=1,
        runtime_top_p=0.0,
    )  # fmt: skip
    assert row.request.prompt == (1, 2, 3)
    assert row.request.sampling.is_greedy
    assert row.request.sampling.end_ids == ()
    assert row.reply.is_streaming
    assert not row.reply.echo
    assert row.reply.outputs == {"output_ids", "sequence_length"}


def test_the_real_text_client() -> None:
    """end_to_end_grpc_client.py sends zero-size lists, and reads text_output alone."""
    sent = arrays(
        text_input="hi", max_tokens=5, stream=False, beam_width=1, temperature=1.0, exclude_input_in_output=False
    )
    sent["embedding_bias_words"] = np.zeros((1, 0), np.object_)
    sent["embedding_bias_weights"] = np.zeros((1, 0), np.float32)
    envelope = Envelope(request_id="r", requested=frozenset({"text_output"}))
    (row,) = RequestParser(VOCAB_SIZE, True, False).parse(sent, envelope)
    assert row.request.sampling.is_greedy
    assert row.reply.echo
    assert row.reply.outputs == {"text_output"}


def test_the_real_client_with_a_draft() -> None:
    """inflight_batcher_llm_client.py --draft-tokens-csv, and each round of e2e_grpc_speculative_decoding_client.py."""
    speculation = tokens(draft_input_ids=[4, 5, 6], end_id=-1).request.speculation
    assert speculation == SpeculationParams(draft_token_ids=(4, 5, 6))


def test_a_draft_beyond_the_output_is_cut() -> None:
    assert tokens(draft_input_ids=[4, 5, 6], request_output_len=2).request.speculation.draft_token_ids == (4, 5)


def test_drafts_by_logits_are_refused() -> None:
    """The same client with --return-draft-model-draft-logits: it would accept by another rule than drawing."""
    sent = arrays(input_ids=[1], request_output_len=4, draft_input_ids=[2, 3])
    sent["draft_logits"] = np.zeros((1, 2, VOCAB_SIZE), np.float32)
    with pytest.raises(InvalidRequest, match=r"^draft_logits is \(2, 100\): drafts are accepted only where the model"):
        RequestParser(VOCAB_SIZE, True, False).parse(sent, Envelope(request_id="r", requested=EVERYTHING))


def test_how_far_to_guess_reaches_the_request() -> None:
    options = {"max_draft_tokens": 4, "drafters": ["suffix"]}
    expected = SpeculationParams(max_draft_tokens=4, drafters=(DrafterKind.SUFFIX,))
    assert text(**options).request.speculation == tokens(**options).request.speculation == expected
    assert text().request.speculation == SpeculationParams()


def test_padding_after_input_lengths_is_no_prompt() -> None:
    assert tokens(input_lengths=2).request.prompt == (1, 2)


def test_words_stops_and_bias() -> None:
    row = text(stop_words=["end", ""], bad_words=["no"], embedding_bias_words=["yes"], embedding_bias_weights=[2.0])
    assert row.request.stop == ("end",)
    assert row.request.bad_words == ("no",)
    assert row.request.bias_words == (("yes", 2.0),)
    packed = [[[5, 6, 9], [2, 3, -1]]]
    bias = [0.0] * VOCAB_SIZE
    bias[7] = -1.5
    sent = arrays(input_ids=[1], request_output_len=4, embedding_bias=bias)
    sent["stop_words_list"] = np.array(packed, np.int32)
    (row,) = RequestParser(VOCAB_SIZE, True, False).parse(sent, Envelope(request_id="r", requested=EVERYTHING))
    assert row.request.sampling.stop_words == ((5, 6), (9,))
    assert row.request.sampling.logit_bias == {7: -1.5}


def test_rows_become_requests_of_their_own() -> None:
    sent: dict[str, Array] = {
        "text_input": np.array([[b"a"], [b"b"]], np.object_),
        "max_tokens": np.array([[3], [4]], np.int32),
    }
    envelope = Envelope(request_id="r", requested=EVERYTHING, timeout=2.0)
    rows = RequestParser(VOCAB_SIZE, True, False).parse(sent, envelope)
    assert [(row.request.request_id, row.request.prompt, row.request.sampling.max_tokens) for row in rows] == [
        ("r.0", "a", 3),
        ("r.1", "b", 4),
    ]
    assert [row.reply.batch_index for row in rows] == [0, 1]
    assert all("batch_index" in row.reply.outputs and row.request.timeout == 2.0 for row in rows)


@pytest.mark.parametrize(
    ("sent", "output"),
    [
        ({"return_log_probs": True}, "output_log_probs"),
        ({"num_return_sequences": 2}, "sequence_index"),
        ({"return_perf_metrics": True}, "first_token_time_ns"),
        ({"return_num_output_tokens": True}, "num_output_tokens"),
        ({"return_finish_reason": True}, "finish_reason"),
        ({"num_log_probs": 3}, "top_log_probs"),
        ({"num_prompt_log_probs": 0}, "prompt_log_probs"),
        ({"return_context_logits": True}, "context_logits"),
        ({"return_generation_logits": True}, "generation_logits"),
    ],
)
def test_outputs_are_filled_when_called_for(sent: dict[str, Any], output: str) -> None:
    assert output in text(**sent).reply.outputs
    assert output not in text().reply.outputs


def test_the_token_door_gives_text_to_who_names_it() -> None:
    assert "text_output" not in tokens().reply.outputs
    assert "text_output" in tokens(requested=frozenset({"text_output"})).reply.outputs


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: must be at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0: must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan: must be a finite number"),
        ({"top_p": 1.5}, r"top_p is 1.5: must be above 0 and at most 1"),
        ({"top_p": -0.5}, "top_p is -0.5"),
        ({"top_k": -2}, "top_k is -2: must be at least 0"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"min_tokens": 9}, r"min_tokens is 9: must not be above max_tokens \(8\)"),
        ({"num_log_probs": 99}, "num_log_probs is 99"),
        ({"text_input": [b"\xff"]}, "text_input is .* must be UTF-8"),
        ({"stop_words": [b"\xff"]}, "stop_words is .* must be UTF-8"),
        ({"input_ids": [1]}, "input_ids is 'given with text_input'"),
        ({"request_output_len": 9}, "max_tokens is 8: contradicts request_output_len, which is 9"),
        ({"runtime_top_k": 3, "top_k": 4}, "top_k is 4: contradicts runtime_top_k"),
        ({"embedding_bias_words": ["a"]}, "embedding_bias_weights is 0: needs one weight a word: 1"),
        ({"embedding_bias": [1.0]}, "embedding_bias is 1: must have one value a token: 100"),
        ({"beam_width": 11}, "beam_width is 11: must be between 1 and 10"),
        ({"beam_width": -1}, "beam_width is -1"),
        ({"beam_width": 2, "length_penalty": 20.0}, "length_penalty is 20.0"),
        ({"beam_width": 2, "num_return_sequences": 3}, r"num_return_sequences is 3: must be at most beam_width \(2\)"),
        (
            {"beam_width": 2, "return_context_logits": True},
            "return_context_logits is 'given': does not go with beam_width 2",
        ),
        (
            {"guided_decoding_guide_type": "xml"},
            "guided_decoding_guide_type is 'xml': known are json, json_schema, regex",
        ),
        ({"guided_decoding_guide": "a+"}, "guided_decoding_guide_type is None: guided_decoding_guide needs a type"),
        ({"guided_decoding_guide_type": "regex"}, "guided_decoding_guide is '': a regex guide needs its text"),
        (
            {"guided_decoding_guide_type": "json", "guided_decoding_guide": "{}"},
            "guided_decoding_guide is '{}': json takes no guide",
        ),
        (
            {"draft_acceptance_threshold": 0.5},
            "draft_acceptance_threshold is 0.5: drafts are accepted only where the model",
        ),
        ({"draft_input_ids": [1, 100]}, "draft_input_ids is 100: token ids of this engine lie between 0 and 99"),
        ({"max_draft_tokens": -1}, "max_draft_tokens is -1: must be at least 0"),
        ({"drafters": ["ngram"]}, "drafters is 'ngram': known are prompt_lookup"),
        ({"max_draft_tokens": 0, "drafters": ["suffix"]}, "drafters is 'suffix': contradicts max_draft_tokens"),
        ({"runtime_top_p_decay": 0.5}, "runtime_top_p_decay is 0.5"),
    ],
)
def test_bad_input_is_named_as_the_client_knows_it(sent: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{says}"):
        text(**sent)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"request_output_len": 0}, "request_output_len is 0: must be at least 1"),
        ({"beam_width": 2, "len_penalty": -20.0}, "len_penalty is -20.0: must be between -16 and 16"),
        ({"runtime_top_p": 2.0}, "runtime_top_p is 2.0"),
        ({"input_ids": [1, 100]}, "input_ids is 100: token ids of this engine lie between 0 and 99"),
        ({"input_ids": [-1]}, "input_ids is -1: token ids"),
        ({"input_lengths": 4}, "input_lengths is 4: must be between 1 and the 3 tokens of input_ids"),
        ({"apply_chat_template": True}, "apply_chat_template is True"),
    ],
)
def test_bad_input_of_the_token_door(sent: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{says}"):
        tokens(**sent)


@pytest.mark.parametrize("door", [text, tokens])
def test_guides(door: Callable[..., Row]) -> None:
    assert door().request.sampling.guide is None
    assert door(guided_decoding_guide_type="", guided_decoding_guide="").request.sampling.guide is None
    assert door(guided_decoding_guide_type="json").request.sampling.guide == Guide(GuideKind.JSON)
    guide = door(guided_decoding_guide_type="ebnf_grammar", guided_decoding_guide='root ::= "a"').request.sampling.guide
    assert guide == Guide(GuideKind.EBNF, 'root ::= "a"')


def test_errors_of_the_executor_are_renamed() -> None:
    assert client_named(InvalidRequest("guide", "(", "x"), is_text=False).field == "guided_decoding_guide"
    error = InvalidRequest("logit_bias[7]", 7, "no such token")
    assert str(client_named(error, is_text=False)) == "embedding_bias[7] is 7: no such token"
    assert client_named(InvalidRequest("draft_token_ids", 7, "x"), is_text=True).field == "draft_input_ids"
    assert client_named(InvalidRequest("max_tokens", 1, "x"), is_text=False).field == "request_output_len"


@pytest.mark.parametrize("door", [text, tokens])
def test_adapters_by_name_and_by_task(door: Callable[..., Row]) -> None:
    assert door().request.adapter == door(lora_name="", lora_task_id=0).request.adapter == ""
    assert door(lora_name="french").request.adapter == "french"
    assert door(lora_task_id=7).request.adapter == "7"
    assert door(lora_task_id=2**64 - 1).request.adapter == str(2**64 - 1)
    assert door(lora_name="7", lora_task_id=7).request.adapter == "7"
    with pytest.raises(InvalidRequest, match=r"^lora_name is 'french': contradicts lora_task_id, which is 7"):
        door(lora_name="french", lora_task_id=7)


def test_each_row_has_its_own_adapter() -> None:
    sent = {
        "text_input": np.array([[b"a"], [b"b"], [b"c"]], np.object_),
        "max_tokens": np.array([[4]] * 3, np.int32),
        "lora_name": np.array([[b"french"], [b""], [b"7"]], np.object_),
    }
    rows = RequestParser(VOCAB_SIZE, True, False).parse(sent, Envelope(request_id="r", requested=EVERYTHING))
    assert [row.request.adapter for row in rows] == ["french", "", "7"]


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"lora_weights": (1, 2, 8)}, "lora_config is None: lora_weights comes with it"),
        ({"lora_config": (1, 2, 3)}, "lora_weights is None: lora_config comes with it"),
        ({"lora_weights": (1, 2, 8), "lora_config": (1, 2, 3)}, "lora_task_id is 0: lora_weights are of a task"),
    ],
)
def test_weights_need_their_description_and_a_task(sent: dict[str, tuple[int, ...]], says: str) -> None:
    tensors = {name: np.zeros(shape, TYPES[name]) for name, shape in sent.items()}
    with pytest.raises(InvalidRequest, match=f"^{says}"):
        RequestParser(VOCAB_SIZE, True, False).parse(
            arrays(text_input="hello", max_tokens=8) | tensors, Envelope(request_id="r", requested=EVERYTHING)
        )


def test_errors_about_an_adapter_name_what_the_client_sent() -> None:
    unknown, unusable = UnknownAdapter("adapter", "7", "is not here"), UnusableAdapter("adapter", "7", "is damaged")
    by_name, by_task = text(lora_name="7"), tokens(lora_task_id=7)
    assert str(by_name.client_named(unknown)) == "lora_name is '7': is not here"
    assert str(by_task.client_named(unusable)) == "lora_task_id is '7': is damaged"
    # These words of TensorRT-LLM's make a client send the weights again.
    assert "LoRA task 7 not found in cache. Please send LoRA weights with request" in str(by_task.client_named(unknown))
    assert by_task.client_named(InvalidRequest("max_tokens", 0, "x")).field == "request_output_len"


@pytest.mark.parametrize("door", [text, tokens])
def test_beams(door: Callable[..., Row]) -> None:
    for width in ({}, {"beam_width": 0}, {"beam_width": 1}):
        assert door(**width).request.beams is None
    row = door(beam_width=4, runtime_top_k=1, temperature=1.0, return_log_probs=True)
    assert row.request.beams == BeamParams(
        width=4
    )  # TensorRT-LLM's defaults: no penalty, stop as soon as four are there
    assert row.request.sampling.n == 4
    assert "sequence_index" not in row.reply.outputs
    row = door(beam_width=4, length_penalty=0.5, early_stopping=False, beam_search_diversity_rate=0.25)
    assert row.request.beams == BeamParams(
        width=4, length_penalty=0.5, early_stopping=EarlyStopping.LIKELY, diversity_rate=0.25
    )
    assert door(beam_width=2, len_penalty=0.5, early_stopping=True).request.beams == BeamParams(
        width=2, length_penalty=0.5
    )
    assert door(beam_width=4, num_return_sequences=2).request.sampling.n == 2
    # All beams come in one response.
    assert door(beam_width=4, is_decoupled=False).request.sampling.n == 4
    assert door(beam_width=4).num_responses == 1


def test_what_asks_for_nothing_is_let_pass() -> None:
    text(beam_width=1, lora_task_id=0, return_context_logits=False, prompt_vocab_size=0, length_penalty=1.0)
    tokens(pad_id=0, len_penalty=2.0, early_stopping=True, decoder_input_ids=[2], lookahead_window_size=5)


def test_one_answer_a_request_without_decoupling() -> None:
    with pytest.raises(InvalidRequest, match=r"^stream is True: this model is not decoupled"):
        text(is_decoupled=False, stream=True)
    with pytest.raises(InvalidRequest, match=r"^num_return_sequences is 2"):
        text(is_decoupled=False, num_return_sequences=2)
    assert text(is_decoupled=False).reply.echo


def chat(**tensors: Any) -> Row:
    return parse(**({"messages": '{"messages": [{"role": "user", "content": "Hi"}]}', "max_tokens": 8} | tensors))


def test_messages_are_a_text_door() -> None:
    row = chat(stream=True, return_usage=True, return_finish_reason=True)
    assert row.request.chat is not None
    assert row.request.chat.messages == ({"role": "user", "content": "Hi"},)
    assert row.request.prompt == ""
    assert row.reply.outputs >= {"text_output", "usage", "finish_reason"}


def test_what_a_gateway_asks_for_beside() -> None:
    row = text(fit_max_tokens=True, skip_special_tokens=False, add_special_tokens=False, return_token_bytes=True)
    request = row.request
    assert request.fit_max_tokens
    assert request.return_token_bytes
    assert not request.skip_special_tokens
    assert not request.add_special_tokens
    assert "token_bytes" in row.reply.outputs
    assert not row.reply.tokenize_only
    assert tokens(tokenize_only=True).reply.tokenize_only


def test_logit_bias_by_token_id() -> None:
    row = text(logit_bias_ids=[7, 3], logit_bias_values=[1.5, -100.0])
    assert row.request.sampling.logit_bias == {7: 1.5, 3: -100.0}


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"messages": "no JSON"}, "messages is 'no JSON'"),
        ({"messages": "[]"}, "messages is '\\[\\]'"),
        ({"messages": "{}"}, "messages is 0"),
        ({"messages": '{"messages": {}}'}, "messages is {}: must be a JSON list"),
        ({"messages": '{"messages": ["Hi"]}'}, "messages.0. is 'Hi'"),
        ({"messages": '{"messages": [{"content": "Hi"}]}'}, "messages.0. is {'content'"),
        ({"messages": "[" * 100_000}, "messages is "),
        ({"messages": '{"messages": [{"role": "user"}], "template": "x"}'}, "messages is .'template'."),
        ({"messages": '{"messages": [{"role": "user"}], "tools": [1]}'}, "tools.0. is 1"),
        (
            {"messages": '{"messages": [{"role": "user"}], "chat_template_kwargs": {"raise_exception": 1}}'},
            "chat_template_kwargs is",
        ),
        ({"messages": '{"messages": [{"role": "user"}], "continue_final_message": true}'}, "continue_final_message is"),
        ({"text_input": "x"}, "messages is 'given with another prompt'"),
        ({"input_ids": [1]}, "input_ids is 'given with messages'"),
        ({"apply_chat_template": True}, "messages is 'given with another prompt'"),
        ({"logit_bias_ids": [1]}, "logit_bias_values is 0"),
        (
            {"logit_bias_ids": [1], "logit_bias_values": [1.0], "embedding_bias": [0.0] * 100},
            "logit_bias_ids is 'given",
        ),
    ],
)
def test_a_bad_chat_is_named(sent: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{says}"):
        chat(**sent)
