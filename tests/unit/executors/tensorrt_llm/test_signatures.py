"""All that is built for TensorRT-LLM is known to each release by name, and all that a release requires is given.

The names are recorded (`tests/data/tensorrt_llm_signatures.json`); nothing of the library is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.tensorrt_llm_engines import FLOWS, record_of
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import Flow
from trierarch.python_backend.executors.tensorrt_llm.abilities import abilities_of
from trierarch.python_backend.executors.tensorrt_llm.arguments import ARGUMENTS_MODULE, llm_arguments, with_host_cache
from trierarch.python_backend.executors.tensorrt_llm.failures import CACHE_FULL, NOT_CACHED
from trierarch.python_backend.executors.tensorrt_llm.logits import LogitsAsked
from trierarch.python_backend.executors.tensorrt_llm.release import RELEASES
from trierarch.python_backend.executors.tensorrt_llm.sampling import sampling_arguments
from trierarch.python_backend.request import Guide, GuideKind, SamplingParams

SIGNATURES: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "data/tensorrt_llm_signatures.json").read_text(encoding="utf-8")
)
RECORDED = ("1.0", "1.2", "1.3")
EVERYTHING = SamplingParams(
    max_tokens=9,
    min_tokens=1,
    temperature=0.5,
    top_k=3,
    top_p=0.9,
    min_p=0.1,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.2,
    logit_bias={3: 1.0},
    bad_words=((4,),),
    seed=1,
    end_ids=(5,),
    logprobs=2,
)
GREEDY = replace(EVERYTHING, temperature=0.0)
TOLD = replace(GREEDY, prompt_logprobs=2, return_context_logits=True, return_generation_logits=True)
GUIDES = [
    Guide(GuideKind.JSON),
    Guide(GuideKind.JSON_SCHEMA, "{}"),
    Guide(GuideKind.REGEX, "a+"),
    Guide(GuideKind.EBNF, 'root ::= "a"'),
]
CONFIGURED: dict[str, Any] = {
    "kv_cache_config": {"free_gpu_memory_fraction": 0.5, "enable_block_reuse": True, "event_buffer_max_size": 16},
    "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
    "lora_config": {"max_lora_rank": 8, "lora_target_modules": ["attn_q"], "max_loras": 2, "max_cpu_loras": 4},
    "peft_cache_config": {"host_cache_size": 1 << 20, "device_cache_percent": 0.1},
}
OF_TORCH: dict[str, Any] = {"cuda_graph_config": {"max_batch_size": 8, "enable_padding": True}}
SPECULATION: dict[str, dict[str, Any]] = {
    "Draft_Target": {"max_draft_len": 4, "speculative_model_dir": "draft"},
    "DraftTarget": {"max_draft_len": 4, "speculative_model_dir": "draft"},
    "Eagle": {"max_draft_len": 4, "speculative_model_dir": "draft"},
    "MTP": {"num_nextn_predict_layers": 1},
    "NGram": {"max_draft_len": 4, "max_matching_ngram_size": 2},
    "Medusa": {"max_draft_len": 4, "num_medusa_heads": 2},
    "Lookahead": {"max_window_size": 4, "max_ngram_size": 3, "max_verification_set_size": 4},
}


def fields(release: str, name: str) -> dict[str, dict[str, Any]]:
    """A class's own and its bases' fields."""
    entry = SIGNATURES[release][name]
    assert not entry.get("absent"), f"{name} is not in {release}"
    found: dict[str, dict[str, Any]] = {}
    for base in entry.get("bases", ()):
        found |= fields(release, base)
    return found | {field["name"]: field for field in entry["fields"]}


def check(release: str, name: str, given: Iterable[str]) -> None:
    """Known, required, and none that may not be there."""
    known, given = fields(release, name), set(given)
    aliases = {field["alias"]: own for own, field in known.items() if "alias" in field}
    assert given <= known.keys() | aliases.keys(), f"{name} of {release}"
    own = {aliases.get(key, key) for key in given}
    assert not {key for key, field in known.items() if field.get("required")} - own
    uncertain = {key for key in own if known[key].get("uncertain")}
    assert uncertain <= {"enable_trtllm_sampler"}, "1.0's own manual has it"
    assert not {key for key in own if known[key].get("init") is False}


class Recorder:
    """Makes every configuration class that the release has there, and remembers what each was given."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.made: dict[str, dict[str, Any]] = {}

    def find(self, module: str, name: str) -> Any:
        entry = SIGNATURES[self.release].get(name, {"absent": True})
        if entry.get("absent") or entry["module"] != module:
            return None

        def make(**given: Any) -> dict[str, Any]:
            check(self.release, name, given)
            self.made[name] = given
            return given

        return make


def given(sampling: SamplingParams, gathers: bool = True) -> dict[str, Any]:
    """What SamplingParams is given for the first sequence of a request."""
    return sampling_arguments(sampling, 0, (1,), 0, 97, LogitsAsked.of(sampling, 0, gathers))


def test_a_release_that_is_not_recorded_gets_what_its_neighbours_agree_on() -> None:
    assert set(RECORDED) == SIGNATURES.keys() - {"about", "sources"}
    assert RELEASES.keys() - set(RECORDED) == {"1.1"}
    between, before, after = RELEASES["1.1"], RELEASES["1.0"], RELEASES["1.2"]
    assert set(between.lora_config_modules) == {*before.lora_config_modules, *after.lora_config_modules}
    assert between == replace(before, name="1.1", lora_config_modules=between.lora_config_modules)


@pytest.mark.parametrize("release", RECORDED)
@pytest.mark.parametrize("sampling", [EVERYTHING, GREEDY, TOLD, *(replace(GREEDY, guide=guide) for guide in GUIDES)])
@pytest.mark.parametrize("gathers", [False, True])
def test_sampling_params(release: str, sampling: SamplingParams, gathers: bool) -> None:
    arguments = given(sampling, gathers)
    check(release, "SamplingParams", arguments)
    if "guided_decoding" in arguments:
        check(release, "GuidedDecodingParams", arguments["guided_decoding"])


@pytest.mark.parametrize("release, flow", FLOWS)
def test_arguments_of_the_llm(release: str, flow: Flow, tmp_path: Path) -> None:
    llm_args = {**CONFIGURED, **(OF_TORCH if flow is Flow.PYTORCH else {}), "max_batch_size": 8}
    record = record_of(release, flow, **llm_args)
    recorder = Recorder(release)
    arguments = llm_arguments(tmp_path, record, RELEASES[release], recorder.find)
    call = "tensorrt_llm._tensorrt_engine.LLM.__init__" if flow is Flow.ENGINE else "tensorrt_llm.LLM.__init__"
    args_class = "TrtLlmArgs" if flow is Flow.ENGINE else "TorchLlmArgs"
    params = {param["name"] for param in SIGNATURES[release][call]["params"]}
    check(release, args_class, (arguments.keys() | {"model"}) - (params - fields(release, args_class).keys()))
    assert "model" in params
    expected = {"KvCacheConfig", "SchedulerConfig", "LoraConfig", "PeftCacheConfig"}
    assert recorder.made.keys() == expected | ({"CudaGraphConfig"} if flow is Flow.PYTORCH else set())
    assert arguments["skip_tokenizer_init"] is False, "guides need the tokenizer"


@pytest.mark.parametrize("release", RECORDED)
@pytest.mark.parametrize("kind", SPECULATION)
def test_speculation(release: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "draft").mkdir()
    config = {"decoding_type": kind, **SPECULATION[kind]}
    if release == "1.3" and kind == "MTP":
        config = {"decoding_type": kind, "max_draft_len": 1}
    record = record_of(release, Flow.PYTORCH, speculative_config=config)
    recorder = Recorder(release)
    llm_arguments(tmp_path, record, RELEASES[release], recorder.find)
    ((_, given),) = recorder.made.items()
    assert "decoding_type" not in given
    if "speculative_model_dir" in config:
        assert given["speculative_model_dir"] == str(tmp_path / "draft"), "a folder of the engine's"


@pytest.mark.parametrize("release", RECORDED)
def test_host_memory_for_blocks_goes_beside_what_the_engine_says_of_its_cache(release: str, tmp_path: Path) -> None:
    recorder, built = Recorder(release), record_of(release, kv_cache_config={"enable_block_reuse": True})
    assert with_host_cache(built, 0) is built
    llm_arguments(tmp_path, with_host_cache(built, 1 << 30), RELEASES[release], recorder.find)
    assert recorder.made["KvCacheConfig"] == {"enable_block_reuse": True, "host_cache_size": 1 << 30}
    llm_arguments(tmp_path, with_host_cache(record_of(release), 1 << 30), RELEASES[release], recorder.find)
    assert recorder.made["KvCacheConfig"]["host_cache_size"] == 1 << 30


def test_a_class_that_a_release_does_not_have_is_told(tmp_path: Path) -> None:
    record = record_of("1.2", speculative_config={"decoding_type": "Eagle3", "max_draft_len": 4})
    with pytest.raises(EngineError, match=r"Eagle3DecodingConfig, which TensorRT-LLM 1\.2 does not have"):
        llm_arguments(tmp_path, record, RELEASES["1.2"], Recorder("1.2").find)
    record = record_of("1.2", speculative_config={"decoding_type": "Guesswork"})
    with pytest.raises(EngineError, match="decoding_type is 'Guesswork'"):
        llm_arguments(tmp_path, record, RELEASES["1.2"], Recorder("1.2").find)


def test_a_field_that_a_class_does_not_have_is_told(tmp_path: Path) -> None:
    def find(module: str, name: str) -> Any:
        return lambda **given: int(**given)

    record = record_of("1.2", kv_cache_config={"no_such": 1})
    with pytest.raises(EngineError, match=r"llm_args\.kv_cache_config is none of TensorRT-LLM 1\.2"):
        llm_arguments(tmp_path, record, RELEASES["1.2"], find)


@pytest.mark.parametrize("release", RECORDED)
def test_calls_and_what_comes_back(release: str) -> None:
    signatures = SIGNATURES[release]
    generate = signatures["tensorrt_llm.LLM.generate_async"]
    known = {param["name"] for param in generate["params"]} - set(generate.get("uncertain_params", ()))
    ours = {"inputs", "sampling_params", "streaming", "lora_request", "kv_cache_retention_config"}
    ours |= {"cache_salt"} if RELEASES[release].takes_cache_salt else set()
    ours |= {"priority"} if RELEASES[release].takes_priority else set()
    assert ours <= known
    assert {"cache_salt", "priority"} & known == ours & {"cache_salt", "priority"}, "what a release has is used"
    assert next(iter(generate["params"]))["name"] == "inputs"
    check(release, "LoRARequest", {"lora_name", "lora_int_id", "lora_path"})
    assert {"outputs", "finished", "context_logits"} <= set(signatures["RequestOutput"]["properties"])
    assert {"token_ids", "logprobs"} <= set(signatures["CompletionOutput"]["cumulative"])
    assert set(signatures["CompletionOutput"]["finish_reason_values"]) == {"stop", "length", "timeout", "cancelled"}
    told = {"finish_reason", "request_perf_metrics", "generation_logits"}
    assert told <= fields(release, "CompletionOutput").keys()
    for call in ("get_stats_async", "get_kv_cache_events_async"):
        assert signatures[f"tensorrt_llm.LLM.{call}"]["params"][0]["name"] == "timeout"
    check(release, "TokenRangeRetentionConfig", {"token_start", "token_end", "priority", "duration_ms"})
    check(
        release,
        "KvCacheRetentionConfig",
        {"token_range_retention_configs", "decode_retention_priority", "decode_duration_ms"},
    )
    assert signatures["tensorrt_llm.llmapi.RequestOutput.abort"]["params"] == []
    assert signatures["tensorrt_llm.LLM.shutdown"]["params"] == []
    assert fields(release, "LoraConfig")
    assert (signatures["LoraConfig"]["module"],) == RELEASES[release].lora_config_modules
    assert signatures["KvCacheConfig"]["module"] == ARGUMENTS_MODULE


@pytest.mark.parametrize("release", RECORDED)
def test_the_words_of_a_cache_that_lacks_an_adapter(release: str) -> None:
    texts = [error["text"] for error in SIGNATURES[release]["errors"]["lora"] if "batch_manager" in error["class"]]
    assert sorted(texts) == sorted([f"LoRA task {{id}} {NOT_CACHED}", CACHE_FULL])


@pytest.mark.parametrize("release, flow", FLOWS)
def test_every_field_of_ours_is_passed_on_or_refused(release: str, flow: Flow) -> None:
    """Each alone changes what the library is given, or names itself in a refusal."""
    abilities = abilities_of(record_of(release, flow))
    plain = SamplingParams(max_tokens=9, seed=1, top_k=3)
    changes: dict[str, Any] = {
        **{name: getattr(EVERYTHING, name) for name in ("min_tokens", "temperature", "top_p", "min_p")},
        **{name: getattr(EVERYTHING, name) for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")},
        **{name: getattr(EVERYTHING, name) for name in ("logit_bias", "bad_words", "end_ids", "logprobs")},
        "max_tokens": 8,
        "top_k": 4,
        "seed": 2,
        "guide": GUIDES[0],
        "prompt_logprobs": 0,
        "return_context_logits": True,
        "return_generation_logits": True,
        "return_embedding": True,
        "edited_logprobs": True,
    }
    assert changes.keys() | {"n", "stop_words"} == set(SamplingParams.__dataclass_fields__)
    for name, value in changes.items():
        changed = replace(plain, **{name: value})
        if name in abilities.refused:
            continue
        assert repr(given(changed)) != repr(given(plain)), name
