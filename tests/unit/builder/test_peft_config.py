"""An adapter_config.json: what counts is read as PEFT reads it, what is not honoured is refused by name."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.builder.errors import AdapterError
from trierarch.builder.peft_config import PeftConfig

Q0, K10 = "model.layers.0.self_attn.q_proj", "model.layers.10.self_attn.k_proj"


def parse(**keys: Any) -> PeftConfig:
    return PeftConfig.parse(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16} | keys).encode())


def test_the_scaling_is_alpha_over_r_or_over_its_root() -> None:
    assert parse().scaling(Q0) == 2
    assert parse(use_rslora=True).scaling(Q0) == 16 / math.sqrt(8)
    assert parse(lora_alpha=1.5).scaling(Q0) == 1.5 / 8


@pytest.mark.parametrize(
    "key, matches",
    [
        ("q_proj", {Q0}),
        ("self_attn.q_proj", {Q0}),
        ("attn.q_proj", set()),
        (Q0, {Q0}),
        ("^" + Q0, {Q0}),
        ("^q_proj", set()),
        (r".*\.q_proj", {Q0}),
        (r"layers.1\d.self_attn.(q|k)_proj", {K10}),
        (r"layers\.0\..*", {Q0}),
        ("_proj", set()),
        ("model.layers.1", set()),
    ],
)
def test_patterns_match_the_end_of_a_name_as_in_peft(key: str, matches: set[str]) -> None:
    config = parse(rank_pattern={key: 4}, alpha_pattern={key: 40})
    for module in (Q0, K10):
        is_match = module in matches
        assert config.rank(module) == (4 if is_match else 8)
        assert config.scaling(module) == (10 if is_match else 2)


def test_the_first_pattern_that_matches_counts() -> None:
    config = parse(rank_pattern={"q_proj": 2, Q0: 4}, alpha_pattern={Q0: 10, "q_proj": 20})
    assert config.rank(Q0) == 2
    assert config.scaling(Q0) == 5
    assert config.scaling("x.q_proj") == 10


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA': only 'LORA' is served; .*merge"),
    ({"peft_type": None}, "peft_type is None"),
    ({"bias": "all"}, "bias is 'all': .*train with bias='none'"),
    ({"bias": "lora_only"}, "bias is 'lora_only'"),
    ({"modules_to_save": ["score"]}, "modules_to_save has 'score': only embed_tokens and lm_head .*merge"),
    ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', .*path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
    ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
    ({"trainable_token_indices": [1]}, r"trainable_token_indices is \[1\]: .*modules_to_save"),
    ({"lora_bias": True}, "lora_bias is True: .*lora_bias=False"),
    ({"use_qalora": True}, "use_qalora is True"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config is "),
    ({"target_parameters": ["experts"]}, "target_parameters is .*experts"),
    ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens is"),
    ({"megatron_config": {"x": 1}}, "megatron_config is"),
    ({"layer_replication": [[0, 2]]}, "layer_replication is"),
    ({"kasa_config": {"beta": 1}}, "kasa_config is .*changes the base"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is"),
    ({"monteclora_config": {"num_samples": 2}}, "monteclora_config is"),
    ({"novel_trick": 3}, "novel_trick is 3: it is not known here.*merge"),
    ({"r": 0}, "r is 0: "),
    ({"r": "many"}, "r is 'many'"),
    ({"lora_alpha": math.nan}, "lora_alpha is nan"),
    ({"rank_pattern": {"q_proj": -1}}, r"rank_pattern\.q_proj is -1"),
    ({"alpha_pattern": {"q_proj": "x"}}, r"alpha_pattern\.q_proj is 'x'"),
    ({"rank_pattern": {"(": 3}}, r"rank_pattern has the key '\('"),
]


@pytest.mark.parametrize("keys, message", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        parse(**keys)


def test_what_changes_nothing_is_let_through() -> None:
    config = parse(
        auto_mapping={"base_model_class": "X"},
        base_model_name_or_path="/x/y",
        bias="none",
        corda_config=None,
        eva_config={"rho": 2.0},
        exclude_modules=["lm_head"],
        fan_in_fan_out=False,
        inference_mode=True,
        init_lora_weights="gaussian",
        layers_pattern="layers",
        layers_to_transform=[0, 2],
        loftq_config={},
        lora_bias=False,
        lora_dropout=0.1,
        megatron_core="megatron.core",
        modules_to_save=["embed_tokens", "model.lm_head"],
        peft_version="0.99",
        qalora_group_size=16,
        revision="main",
        target_modules=["q_proj"],
        task_type="CAUSAL_LM",
        use_dora=False,
        novel_trick=None,
        rank_pattern=None,
    )
    assert config.scaling(Q0) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"r": ' + b"9" * 5000 + b"}"])
def test_what_is_no_configuration(content: bytes) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config\.json is not"):
        PeftConfig.parse(content)


@pytest.mark.parametrize(
    "key", ["(a+)+", "(a|a)*", "(.|.)" * 20, ".*.*.*.*", "x" * 1000, r"(a)\1", "(?=a)b", "(a{1,50}){1,50}"]
)
def test_an_expression_that_may_take_forever_is_refused(key: str) -> None:
    with pytest.raises(AdapterError, match="may take forever; save the adapter with module names"):
        parse(rank_pattern={key: 4})


@given(st.text(alphabet="a.*+?|()[]{}^$\\d1,", max_size=24))
def test_no_expression_takes_long(key: str) -> None:
    try:
        config = parse(rank_pattern={key: 4})
    except AdapterError:
        return
    started = time.process_time()
    config.rank("model.layers." + "a" * 60 + ".self_attn.q_proj!")
    assert time.process_time() - started < 0.5
