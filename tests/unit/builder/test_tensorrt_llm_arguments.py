"""What we write for TensorRT-LLM is what its releases take, and no field of ours is lost on the way."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from support.trtllm_facts import BETWEEN, command_mistakes, facts, fields, mistakes, recorded
from support.trtllm_specs import trtllm_spec
from trierarch.builder.config import BuildConfig, TokenSampler
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import (
    DrafterKind,
    Flow,
    KvCache,
    KvType,
    Layer,
    Lora,
    Moe,
)
from trierarch.builder.tensorrt_llm.arguments import (
    BUILDER_FIELDS,
    ENGINE_BUILD,
    ENGINE_LLM,
    EXECUTOR_FIELDS,
    IN_CHECKPOINT,
    PYTORCH_LLM,
    REFUSED_FIELDS,
    build_config,
    check_fields,
    llm_args,
)
from trierarch.builder.tensorrt_llm.compile import build_flags
from trierarch.builder.tensorrt_llm.contradictions import check_together
from trierarch.builder.tensorrt_llm.defaults import with_defaults
from trierarch.builder.tensorrt_llm.quantization import FORMATS
from trierarch.builder.tensorrt_llm.releases import NEWEST, RELEASES, find_release
from trierarch.builder.tensorrt_llm.sampler import choose_sampler
from trierarch.builder.tensorrt_llm.spec import Spec
from trierarch.builder.tensorrt_llm.speculation import the_drafter

CASES = [(name, flow) for name, release in RELEASES.items() for flow in release.flows]
LORA = Lora(max_rank=16, max_adapters=4, host_bytes=1 << 30)


def config_of(**asked: Any) -> BuildConfig:
    return BuildConfig(model="demo", output=Path("out"), **asked)


def drafters_of(release: str, flow: Flow) -> list[DrafterKind | None]:
    found: list[DrafterKind | None] = [None]
    for kind in DrafterKind:
        try:
            found.append(the_drafter((kind,), RELEASES[release], flow))
        except ConfigError:
            continue
    return found


def specs(release: str, flow: Flow) -> list[Spec]:
    """Everything that changes which arguments are written, crossed."""
    kv = KvCache(dtype=KvType.FP8, block_size=64, num_bytes=1 << 20, bytes_per_token=128, enable_prefix_caching=False)
    everything = config_of(gather_logits=True, kv_event_buffer=1024)
    return [
        trtllm_spec(
            release,
            flow,
            drafter=drafter,
            lora=lora,
            **({} if not is_full else {"kv_cache": kv, "kv_algo": "FP8", "config": everything}),
        )
        for drafter, lora, is_full in itertools.product(drafters_of(release, flow), (None, LORA), (False, True))
    ]


@pytest.mark.parametrize(("release", "flow"), CASES)
def test_every_argument_of_llm_is_one_of_its_release(release: str, flow: Flow) -> None:
    name = "TrtLlmArgs" if flow is Flow.ENGINE else "TorchLlmArgs"
    for spec in specs(release, flow):
        for known in recorded(release):
            between = BETWEEN.get(release, frozenset()) if known != release else frozenset()
            args = {key: value for key, value in llm_args(spec).items() if key not in between}
            assert list(mistakes(known, name, args)) == []


@pytest.mark.parametrize("release", [name for name, flow in CASES if flow is Flow.ENGINE])
def test_every_field_of_the_build_is_one_of_its_release(release: str) -> None:
    for spec in specs(release, Flow.ENGINE):
        config = build_config(spec)
        assert config is not None
        for known in recorded(release):
            assert list(mistakes(known, "BuildConfig", config)) == []
            assert list(command_mistakes(known, list(build_flags(config)))) == []


def test_the_facts_refuse_what_is_not_there() -> None:
    """The check itself: it would notice."""
    assert list(mistakes("1.3", "TorchLlmArgs", {"build_config": {}})) == ["1.3: TorchLlmArgs has no build_config"]
    assert list(mistakes("1.0", "TorchLlmArgs", {"kv_cache_config": {"tokens_per_block": 32}}))
    assert list(mistakes("1.2", "TorchLlmArgs", {"speculative_config": {"decoding_type": "SA", "max_draft_len": 2}}))
    assert list(mistakes("1.3", "TorchLlmArgs", {"speculative_config": {"decoding_type": "Eagle3"}}))
    assert list(mistakes("1.3", "TorchLlmArgs", {"scheduler_config": {"capacity_scheduler_policy": "FAIR"}}))
    assert list(command_mistakes("1.2", ["--paged_attention", "enable"]))
    assert list(command_mistakes("1.2", ["--context_fmha", "True"]))
    assert list(command_mistakes("1.2", ["--gather_context_logits", "enable"]))
    assert list(command_mistakes("1.2", ["--kv_cache_type", "paged", "--kv_cache_type", "paged"]))


def test_no_field_of_ours_is_lost() -> None:
    """A field that is added to BuildConfig must find its place in the table, whatever the flow."""
    for tables in ((PYTORCH_LLM,), (ENGINE_LLM, ENGINE_BUILD)):
        mapped = {row.field for table in tables for row in table if row.field is not None}
        places = [mapped, set(BUILDER_FIELDS), set(EXECUTOR_FIELDS), set(REFUSED_FIELDS)]
        if len(tables) > 1:
            places.append(set(IN_CHECKPOINT))
        assert set().union(*places) == set(BuildConfig.model_fields)
        assert sum(map(len, places)) == len(BuildConfig.model_fields), "a field is in two places"


@pytest.mark.parametrize("field", REFUSED_FIELDS)
def test_what_nothing_does_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is given, and .*; leave it out"):
        check_fields({"model", field})


def test_a_name_that_came_later_is_refused_where_it_was_asked_for() -> None:
    asked = trtllm_spec("1.1", Flow.PYTORCH, asked=frozenset({"block_size"}))
    with pytest.raises(
        ConfigError, match=r"block_size is 16: TensorRT-LLM 1.1 has no kv_cache_config.tokens_per_block"
    ):
        llm_args(asked)
    assert "tokens_per_block" not in llm_args(trtllm_spec("1.1", Flow.PYTORCH))["kv_cache_config"]
    assert llm_args(trtllm_spec("1.2", Flow.PYTORCH))["kv_cache_config"]["tokens_per_block"] == 32


def test_speculation_in_the_words_of_each_release() -> None:
    def said(release: str, kind: DrafterKind) -> dict[str, Any]:
        found: dict[str, Any] = llm_args(trtllm_spec(release, Flow.PYTORCH, drafter=kind))["speculative_config"]
        return found

    assert said("1.2", DrafterKind.DRAFT_MODEL) == {
        "decoding_type": "DraftTarget",
        "max_draft_len": 4,
        "speculative_model_dir": "draft/model",
    }
    assert said("1.3", DrafterKind.DRAFT_MODEL)["decoding_type"] == "Draft_Target"
    assert said("1.0", DrafterKind.EAGLE3)["decoding_type"] == "Eagle"
    assert said("1.3", DrafterKind.EAGLE3)["decoding_type"] == "Eagle3"
    assert said("1.2", DrafterKind.MTP) == {"decoding_type": "MTP", "num_nextn_predict_layers": 4}
    assert said("1.3", DrafterKind.MTP) == {
        "decoding_type": "MTP",
        "max_draft_len": 4,
        "allow_advanced_sampling": True,  # without it, sampled requests would be answered greedily
    }
    assert said("1.0", DrafterKind.PROMPT_LOOKUP)["max_matching_ngram_size"] > 0
    # What one tenant was answered is no guess for another.
    assert said("1.3", DrafterKind.PROMPT_LOOKUP)["is_public_pool"] is False
    assert said("1.3", DrafterKind.SUFFIX) == {
        "decoding_type": "SA",
        "max_draft_len": 4,
        "enable_global_pool": False,
        "allow_advanced_sampling": True,
    }
    engine = build_config(trtllm_spec("1.2", Flow.ENGINE, drafter=DrafterKind.DRAFT_MODEL))
    assert engine is not None
    assert (engine["speculative_decoding_mode"], engine["max_draft_len"]) == ("DRAFT_TOKENS_EXTERNAL", 4)
    flags = list(build_flags(engine))
    assert flags[flags.index("--speculative_decoding_mode") + 1] == "draft_tokens_external"


@pytest.mark.parametrize(
    ("release", "flow", "drafters", "message"),
    [
        (
            "1.2",
            Flow.PYTORCH,
            (DrafterKind.SUFFIX,),
            r"speculation is suffix: TensorRT-LLM 1.2 has prompt_lookup, draft",
        ),
        (
            "1.3",
            Flow.PYTORCH,
            (DrafterKind.PROMPT_LOOKUP, DrafterKind.SUFFIX),
            r"TensorRT-LLM runs one drafter; name one",
        ),
        (
            "1.0",
            Flow.ENGINE,
            (DrafterKind.PROMPT_LOOKUP,),
            r"name draft_model, or build with --tensorrt-llm-flow pytorch",
        ),
        ("1.2", Flow.ENGINE, (DrafterKind.EAGLE3,), r"TensorRT engines take the guesses of a draft model alone"),
    ],
)
def test_drafters_that_a_release_does_not_run_are_refused(
    release: str, flow: Flow, drafters: tuple[DrafterKind, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        the_drafter(drafters, RELEASES[release], flow)


def test_each_release_samples_as_far_as_it_can() -> None:
    assert llm_args(trtllm_spec("1.0", Flow.PYTORCH))["enable_trtllm_sampler"] is True
    for release in ("1.1", "1.2"):
        assert llm_args(trtllm_spec(release, Flow.PYTORCH))["sampler_type"] == "TRTLLMSampler"
        assert "enable_trtllm_sampler" not in llm_args(trtllm_spec(release, Flow.PYTORCH))
    assert not {"sampler_type", "enable_trtllm_sampler"} & llm_args(trtllm_spec("1.3", Flow.PYTORCH)).keys()
    assert llm_args(trtllm_spec("1.3", Flow.PYTORCH))["guided_decoding_backend"] == "xgrammar"
    guessing = llm_args(trtllm_spec("1.2", Flow.PYTORCH, drafter=DrafterKind.PROMPT_LOOKUP))
    assert not {"sampler_type", "guided_decoding_backend"} & guessing.keys()
    assert guessing["disable_overlap_scheduler"] is True


def test_a_sampler_is_chosen_where_there_are_two() -> None:
    for release, expected in {"1.0": None, "1.1": "TorchSampler", "1.2": "TorchSampler", "1.3": None}.items():
        sampler = choose_sampler(TokenSampler.TORCH, RELEASES[release], Flow.PYTORCH, None)
        args = llm_args(trtllm_spec(release, Flow.PYTORCH, sampler=sampler))
        assert args.get("sampler_type") == expected
        assert "enable_trtllm_sampler" not in args


@pytest.mark.parametrize(
    ("asked", "release", "flow", "drafter", "message"),
    [
        (TokenSampler.TORCH, "1.2", Flow.ENGINE, None, r"'torch': TensorRT engines have no other than trtllm; leave"),
        (TokenSampler.TRTLLM, "1.3", Flow.PYTORCH, None, r"'trtllm': TensorRT-LLM 1.3 samples by torch alone; leave"),
        (TokenSampler.TRTLLM, "1.2", Flow.PYTORCH, DrafterKind.MTP, r"takes no guesses, and speculation is mtp; leave"),
    ],
)
def test_a_sampler_that_is_not_there_is_refused(
    asked: TokenSampler, release: str, flow: Flow, drafter: DrafterKind | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_sampler(asked, RELEASES[release], flow, drafter)


@pytest.mark.parametrize(
    ("asked", "drafter", "message"),
    [
        ({"gather_logits": True}, DrafterKind.MTP, r"gather_logits is True, and speculation is mtp"),
        (
            {"kv_event_buffer": 9, "enable_prefix_caching": False},
            None,
            r"kv_event_buffer is 9, and enable_prefix_caching",
        ),
        ({"adapters": {"a": Path("a")}, "max_adapters": 0}, None, r"1 adapters for the engine, and max_adapters is 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    asked: dict[str, Any], drafter: DrafterKind | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_together(config_of(**asked), drafter)


def test_logits_and_events_are_asked_for_where_each_flow_wants_it() -> None:
    config = config_of(gather_logits=True, kv_event_buffer=32)
    for release, flow in CASES:
        spec = trtllm_spec(release, flow, config=config)
        args = llm_args(spec)
        assert args["gather_generation_logits"] is True
        assert args["kv_cache_config"]["event_buffer_max_size"] == 32
        build = build_config(spec)
        assert (build or {}).get("gather_context_logits") == (True if flow is Flow.ENGINE else None)
        if build is not None:
            assert list(build_flags(build)).count("--gather_context_logits") == 1
    assert "--gather_context_logits" not in list(build_flags({"gather_context_logits": False}))
    plain = trtllm_spec("1.2", Flow.ENGINE)
    assert "gather_generation_logits" not in llm_args(plain)
    assert "event_buffer_max_size" not in llm_args(plain)["kv_cache_config"]


def test_windows_and_adapters_of_an_engine_are_said_when_it_is_loaded() -> None:
    args = llm_args(trtllm_spec("1.2", Flow.ENGINE, lora=LORA))
    assert args["kv_cache_config"]["max_attention_window"] == [16, 128]
    assert args["peft_cache_config"] == {"num_device_module_layer": 16 * 2 * 7 * 4, "host_cache_size": 1 << 30}
    plain = trtllm_spec("1.2", Flow.ENGINE)
    unwindowed = plain.architecture.model_copy(update={"layers": (Layer(), Layer())})
    assert (
        "max_attention_window"
        not in llm_args(trtllm_spec("1.2", Flow.ENGINE, architecture=unwindowed))["kv_cache_config"]
    )


def test_experts_are_not_adapted() -> None:
    architecture = trtllm_spec("1.3", Flow.PYTORCH).architecture
    moe = Moe(num_experts=4, experts_per_token=2, intermediate_size=32, normalize_top_k=True)
    layers = (Layer(is_moe=True), Layer(is_moe=True))
    changed = architecture.model_copy(update={"moe": moe, "layers": layers})
    args = llm_args(trtllm_spec("1.3", Flow.PYTORCH, architecture=changed, lora=LORA))
    assert args["lora_config"]["lora_target_modules"] == ["attn_q", "attn_k", "attn_v", "attn_dense"]


def test_a_budget_in_bytes_is_one_in_tokens() -> None:
    kv = KvCache(dtype=KvType.BFLOAT16, num_bytes=256 * 1000 + 255, bytes_per_token=256)
    assert llm_args(trtllm_spec("1.3", Flow.PYTORCH, kv_cache=kv))["kv_cache_config"]["max_tokens"] == 1000


def test_adapters_in_memory_are_what_their_bytes_hold() -> None:
    def of(host_bytes: int) -> Any:
        lora = LORA.model_copy(update={"host_bytes": host_bytes})
        return llm_args(trtllm_spec("1.3", Flow.PYTORCH, lora=lora))["lora_config"]["max_cpu_loras"]

    # q 64 + 64, k and v 64 + 32, o 64 + 64, gate, up and down 64 + 96; rank 16, two layers, two bytes.
    adapter = 16 * 2 * 2 * (128 + 96 + 96 + 128 + 3 * 160)
    assert of(10 * adapter) == 10
    assert of(10 * adapter - 1) == 9
    assert of(1) == LORA.max_adapters


def test_formats_are_called_as_their_release_calls_them() -> None:
    for one in FORMATS.values():
        for release in RELEASES.values():
            if set(one.flows) & set(release.flows):
                for known in recorded(release.name):
                    assert one.algo in facts()[known]["QuantAlgo"]
    assert all("FP8" in facts()[release]["KvCacheQuantAlgo"] for release in ("1.0", "1.2", "1.3"))
    assert set(fields("1.2", "QuantConfig")) >= {"quant_algo", "kv_cache_quant_algo", "group_size", "exclude_modules"}


@pytest.mark.parametrize(
    ("text", "name"),
    [("1.2", "1.2"), ("1.2.1", "1.2"), ("1.3.0rc22", "1.3"), ("1.0.0", "1.0"), ("1.3.0a1+cu13", "1.3")],
)
def test_a_version_belongs_to_a_release(text: str, name: str) -> None:
    assert find_release(text).name == name


@pytest.mark.parametrize("text", ["0.21", "1.4", "2.0.1", "latest", "", "1"])
def test_an_unknown_version_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"known are 1.0, 1.1, 1.2, 1.3; name one of them"):
        find_release(text or "?")


def test_nothing_installed_builds_for_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    from trierarch.builder.tensorrt_llm import releases

    monkeypatch.setattr(releases, "installed_version", lambda: None)
    assert find_release(None).name == NEWEST == list(RELEASES)[-1]
    monkeypatch.setattr(releases, "installed_version", lambda: "1.2.1")
    assert find_release(None).name == "1.2"
    monkeypatch.setattr(releases, "installed_version", lambda: "0.18.0")
    with pytest.raises(ConfigError, match=r"tensorrt_llm_version is '0.18.0', the version installed here: known are"):
        find_release(None)


def test_the_newest_has_no_engines() -> None:
    with pytest.raises(
        ConfigError, match=r"tensorrt_llm_flow is 'engine': TensorRT-LLM 1.3 has no TensorRT engines any"
    ):
        RELEASES["1.3"].flow(Flow.ENGINE)
    assert RELEASES["1.2"].flow(None) is Flow.ENGINE
    assert RELEASES["1.2"].flow(Flow.PYTORCH) is Flow.PYTORCH


def test_defaults_are_the_targets_own_where_nobody_chose() -> None:
    plain = with_defaults(BuildConfig(model="demo", output=Path("out")))
    assert (plain.max_num_tokens, plain.block_size, plain.kv_cache_memory_fraction) == (8192, 32, 0.9)
    assert (plain.speculation, plain.max_adapters, plain.max_draft_tokens) == ((), 0, None)
    chosen = with_defaults(BuildConfig(model="demo", output=Path("out"), max_num_tokens=77, max_adapters=3))
    assert (chosen.max_num_tokens, chosen.max_adapters) == (77, 3)
    drafted = with_defaults(BuildConfig(model="demo", output=Path("out"), draft="./small"))
    assert (drafted.speculation, drafted.max_draft_tokens) == ((DrafterKind.DRAFT_MODEL,), 4)
    with pytest.raises(ConfigError, match=r"max_lora_rank is 8, but the engine takes no adapters; say how many"):
        with_defaults(BuildConfig(model="demo", output=Path("out"), max_lora_rank=8))
