"""`trierarch import` on repositories as TensorRT-LLM's backend has them: names and defaults from its own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.checkpoints import random_checkpoint
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.machine import default_dtype
from trierarch.builder.manifest import EngineManifest, KvType
from trierarch.ensembles.compose import ComposeOptions
from trierarch.orchestrator import cli
from trierarch.orchestrator.commands.build import read_build
from trierarch.orchestrator.composition_spec import CompositionSpec, read_composition
from trierarch.orchestrator.deployment_spec import read_spec
from trierarch.orchestrator.importing.entry import Fate
from trierarch.orchestrator.importing.plan import ImportPlan, plan_import
from trierarch.orchestrator.importing.written_spec import write_import

PARAMETERS = {
    "tensorrt_llm": """
        max_beam_width gpt_model_type gpt_model_path encoder_model_path max_tokens_in_paged_kv_cache
        max_attention_window_size sink_token_length batch_scheduler_policy kv_cache_free_gpu_mem_fraction
        cross_kv_cache_fraction kv_cache_host_memory_bytes kv_cache_onboard_blocks exclude_input_in_output
        cancellation_check_period_ms stats_check_period_ms iter_stats_max_iterations request_stats_max_iterations
        enable_kv_cache_reuse normalize_log_probs enable_chunked_context gpu_device_ids participant_ids num_nodes
        lora_cache_optimal_adapter_size lora_cache_max_adapter_size lora_cache_gpu_memory_fraction
        lora_cache_host_memory_bytes lora_prefetch_dir decoding_mode executor_worker_path lookahead_window_size
        lookahead_ngram_size lookahead_verification_set_size medusa_choices eagle_choices gpu_weights_percent
        enable_context_fmha_fp32_acc multi_block_mode cuda_graph_mode cuda_graph_cache_size
        speculative_decoding_fast_logits tokenizer_dir guided_decoding_backend xgrammar_tokenizer_info_path
        FORCE_CPU_ONLY_INPUT_TENSORS enable_trt_overlap""",
    "preprocessing": "tokenizer_dir add_special_tokens multimodal_model_path gpt_model_path max_num_images",
    "postprocessing": "tokenizer_dir skip_special_tokens",
    "tensorrt_llm_bls": """
        accumulate_tokens tensorrt_llm_model_name tensorrt_llm_draft_model_name multimodal_encoders_name""",
    "ensemble": "",
}
"""What the backend's own templates have."""
BATCH = "128"


def write_repository(folder: Path, triton: dict[str, str] | None = None, **values: str) -> Path:
    """A repository in which `values` are filled in wherever a parameter has that name; the others are left as they come.

    triton: what stands in the places that Triton itself reads.
    """
    filled = {"batch": BATCH, "decoupled": "True", "queue": "0", "delay": "0", "instances": "1"} | (triton or {})
    for model, names in PARAMETERS.items():
        lines = [f'name: "{model}"', f"max_batch_size: {filled['batch']}"]
        if model == "ensemble":
            lines.append('platform: "ensemble"')
        else:
            lines.append(f"instance_group [ {{ count: {filled['instances']} kind : KIND_CPU }} ]")
        if model == "tensorrt_llm":
            lines += [
                f"model_transaction_policy {{ decoupled: {filled['decoupled']} }}",
                f"dynamic_batching {{ max_queue_delay_microseconds: {filled['delay']}",
                f"  default_queue_policy: {{ max_queue_size: {filled['queue']} }} }}",
            ]
        for name in names.split():
            value = values.get(name, f"${{{name}}}")
            lines += ["parameters: {", f'  key: "{name}"', "  value: {", f'    string_value: "{value}"', "  }", "}"]
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text("\n".join(lines) + "\n")
    return folder


def fate(plan: ImportPlan, name: str) -> Fate:
    (found,) = {entry.fate for entry in plan.entries if entry.name == name}
    return found


def test_every_known_parameter_has_a_fate_and_a_reason(tmp_path: Path) -> None:
    numbers = dict.fromkeys(" ".join(PARAMETERS.values()).split(), "1")
    plan = plan_import(write_repository(tmp_path, **numbers), "m")
    for entry in plan.entries:
        assert entry.why
        assert "known here" not in entry.why, entry
    assert {entry.name for entry in plan.entries} >= set(numbers)


def test_what_has_a_counterpart_is_carried_over(tmp_path: Path) -> None:
    plan = plan_import(
        write_repository(
            tmp_path,
            {"decoupled": "false", "queue": "40", "batch": "16"},
            kv_cache_free_gpu_mem_fraction="0.97",
            enable_kv_cache_reuse="false",
            max_tokens_in_paged_kv_cache="2560",
            lora_cache_max_adapter_size="32",
            lora_cache_host_memory_bytes="1000000",
            exclude_input_in_output="True",
            accumulate_tokens="true",
        ),
        "m",
    )
    assert plan.build == {
        "max_batch_size": 16,
        "max_queue_size": 40,
        "kv_cache_memory_fraction": 0.95,
        "enable_prefix_caching": False,
        "max_lora_rank": 32,
        "adapter_host_bytes": 1_000_000,
    }
    assert plan.kv_tokens == 2560
    assert plan.compose == ComposeOptions(decoupled=False, exclude_input_in_output=True, accumulate_tokens=True)


def test_a_deployment_of_what_was_imported_asks_for_its_host_memory(tmp_path: Path) -> None:
    file = tmp_path / "trierarch.yaml"
    plan = plan_import(write_repository(tmp_path / "theirs", kv_cache_host_memory_bytes="1000000"), "m")
    config = BuildConfig(model="m", output=tmp_path / "engine")
    composition = CompositionSpec(tmp_path / "engine", tmp_path / "ours", plan.compose)
    write_import(file, tmp_path / "theirs", plan, config, composition)
    given = {"profile": "keda", "image": "registry.example/trierarch:1", "storage.uri": "pvc://engines/ours"}
    assert read_spec(file, given).kv_tiers.host_bytes == 1_000_000


@pytest.mark.parametrize("reuse", ["true", "false"])
def test_host_memory_for_blocks_is_carried_over_where_blocks_are_cached(reuse: str, tmp_path: Path) -> None:
    repository = write_repository(tmp_path, kv_cache_host_memory_bytes="1000000", enable_kv_cache_reuse=reuse)
    plan = plan_import(repository, "m")
    is_carried = reuse == "true"
    assert plan.compose.kv_host_bytes == (1_000_000 if is_carried else None)
    assert fate(plan, "kv_cache_host_memory_bytes") == (Fate.CARRIED if is_carried else Fate.NONE)


def test_what_is_left_as_a_template_in_a_parameter_is_not_there(tmp_path: Path) -> None:
    """So the backend reads it, and so most repositories are: fill_template.py leaves what it is not told."""
    plan = plan_import(write_repository(tmp_path), "m")
    assert plan.build == {"max_batch_size": 128}
    assert {entry.name for entry in plan.entries} == {"decoupled", "max_batch_size"}


def test_templates_that_triton_would_trip_over_are_all_named_with_file_and_line(tmp_path: Path) -> None:
    write_repository(tmp_path, {"batch": "${triton_max_batch_size}", "decoupled": "${decoupled_mode}"})
    with pytest.raises(ConfigError) as refused:
        plan_import(tmp_path, "m")
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("6 templates are not filled in")
    assert "  ensemble/config.pbtxt:2: ${triton_max_batch_size}" in lines
    assert "  tensorrt_llm/config.pbtxt:4: ${decoupled_mode}" in lines
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ({"max_beam_width": "4"}, "max_beam_width", Fate.NOT_NEEDED),
        ({"max_beam_width": "64"}, "max_beam_width", Fate.NONE),
        ({"decoding_mode": "beam_search"}, "decoding_mode", Fate.NOT_NEEDED),
        ({"decoding_mode": "lookahead"}, "decoding_mode", Fate.NOT_NEEDED),
        ({"decoding_mode": "medusa"}, "decoding_mode", Fate.NONE),
        ({"decoding_mode": "eagle"}, "decoding_mode", Fate.NONE),
        ({"medusa_choices": "{0, 0, 0}, {0, 1}"}, "medusa_choices", Fate.NONE),
        ({"enable_chunked_context": "true"}, "enable_chunked_context", Fate.NOT_NEEDED),
        ({"tensorrt_llm_model_name": "tensorrt_llm"}, "tensorrt_llm_model_name", Fate.NOT_NEEDED),
        ({"tensorrt_llm_draft_model_name": "draft"}, "tensorrt_llm_draft_model_name", Fate.NONE),
    ],
)
def test_the_value_decides(tmp_path: Path, values: dict[str, str], name: str, expected: Fate) -> None:
    assert fate(plan_import(write_repository(tmp_path, **values), "m"), name) is expected


def test_triton_settings_without_a_counterpart_are_told(tmp_path: Path) -> None:
    plan = plan_import(write_repository(tmp_path, {"delay": "500", "instances": "8"}), "m")
    assert fate(plan, "max_queue_delay_microseconds") is Fate.NOT_NEEDED
    assert fate(plan, "instance_group.count") is Fate.NOT_NEEDED
    (tmp_path / "whisper_bls").mkdir()
    (tmp_path / "whisper_bls/config.pbtxt").write_text('name: "whisper_bls"\nbackend: "python"\n')
    other = [entry for entry in plan_import(tmp_path, "m").entries if entry.model == "whisper_bls"]
    assert [entry.fate for entry in other] == [Fate.NONE]


def test_limits_of_an_engine_that_is_here_go_before_tritons(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    limits = {"max_batch_size": 8, "max_seq_len": 512, "max_num_tokens": 1024, "lora_config": {"max_lora_rank": 8}}
    content = {"pretrained_config": {"architecture": "LlamaForCausalLM"}, "build_config": limits}
    (engine / "config.json").write_text(json.dumps(content))
    plan = plan_import(write_repository(tmp_path / "repository", gpt_model_path=str(engine)), None)
    assert plan.build == {"max_batch_size": 8, "max_seq_len": 512, "max_num_tokens": 1024, "max_lora_rank": 8}
    assert plan.model is None
    assert plan.hints == (f"its engine is {str(engine)!r}, a LlamaForCausalLM",)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_tokens_in_paged_kv_cache": "many"}, "tensorrt_llm: parameter max_tokens_in_paged_kv_cache is 'many'"),
        ({"lora_cache_max_adapter_size": "0"}, "parameter lora_cache_max_adapter_size is '0': 0 is below 1"),
        ({"kv_cache_free_gpu_mem_fraction": "2"}, "2.0 is no share of 1"),
    ],
)
def test_values_that_cannot_be_read_are_named(tmp_path: Path, values: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan_import(write_repository(tmp_path, **values), "m")


def test_what_is_no_such_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no model repository"):
        plan_import(tmp_path, "m")
    (tmp_path / "resnet").mkdir()
    (tmp_path / "resnet/config.pbtxt").write_text('name: "resnet"\n')
    with pytest.raises(ConfigError, match="has no model tensorrt_llm"):
        plan_import(tmp_path, "m")
    (tmp_path / "resnet/config.pbtxt").write_text("name: [\n")
    with pytest.raises(ConfigError, match=r"config.pbtxt: 1:7.*it is not what Triton reads"):
        plan_import(tmp_path, "m")


@pytest.mark.parametrize(("file", "option"), [("model.yaml", "--llmapi"), ("model.json", "--vllm")])
def test_settings_that_lie_elsewhere_are_not_lost_silently(tmp_path: Path, file: str, option: str) -> None:
    write_repository(tmp_path)
    (tmp_path / "tensorrt_llm/1" / file).write_text("")
    with pytest.raises(ConfigError, match=f"{file} has settings of .* compose {option} NAME"):
        plan_import(tmp_path, "m")


def run(*arguments: object) -> int:
    """Exit status of `trierarch ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


def test_the_command_builds_and_composes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "checkpoint")
    values = {
        "max_tokens_in_paged_kv_cache": "100",
        "exclude_input_in_output": "true",
        "tokenizer_dir": str(checkpoint),
    }
    repository = write_repository(tmp_path / "theirs", **values)
    output = tmp_path / "ours"
    assert run("import", repository, "--output", output, "--plan") == 0
    assert not output.exists()
    assert run("import", repository, "--output", output) == 0
    assert "carried over" in capsys.readouterr().out
    engine = EngineManifest.load(tmp_path / "ours-engine")
    num_tokens = engine.kv_cache.num_bytes // engine.architecture.kv_bytes_per_token(KvType(default_dtype()))
    assert num_tokens == engine.limits.max_seq_len == 112  # whole blocks
    assert 'key: "exclude_input_in_output"' in (output / "tensorrt_llm/config.pbtxt").read_text()


def test_the_model_has_to_be_named_where_nothing_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = write_repository(tmp_path / "theirs", tokenizer_dir="/models/gpt2")
    assert run("import", repository, "--output", tmp_path / "ours", "--plan") == 0
    assert run("import", repository, "--output", tmp_path / "ours") == 2
    assert "name the checkpoint with --model (its tokenizer is '/models/gpt2')" in capsys.readouterr().err


def test_the_spec_that_it_writes_says_what_it_did_and_others_go_on_from_it(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "checkpoint")
    values = {
        "max_tokens_in_paged_kv_cache": "100",
        "exclude_input_in_output": "true",
        "enable_kv_cache_reuse": "false",
        "medusa_choices": "{0, 1}",
    }
    theirs = write_repository(tmp_path / "theirs", {"batch": "16", "decoupled": "false"}, **values)
    output, file = tmp_path / "ours", tmp_path / "ours-trierarch.yaml"
    arguments = ("import", theirs, "--output", output, "--model", checkpoint)
    assert run(*arguments, "--spec-only") == 0
    assert not output.exists()
    assert not (tmp_path / "ours-engine").exists()

    report = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert "#   tensorrt_llm: max_batch_size 16: carried over: sequences in one step" in report
    assert any("medusa_choices {0, 1}: no counterpart: Medusa heads are not served" in line for line in report)

    assert run("build", "--spec", file) == 0
    assert run("compose", "--spec", file) == 0
    by_spec = EngineManifest.load(tmp_path / "ours-engine")
    configs = {path.name: (path / "config.pbtxt").read_text() for path in sorted(output.iterdir())}

    assert run(*arguments) == 2, "the spec is there already"
    assert run(*arguments, "--overwrite") == 0
    assert EngineManifest.load(tmp_path / "ours-engine") == by_spec
    assert {path.name: (path / "config.pbtxt").read_text() for path in sorted(output.iterdir())} == configs
    assert (by_spec.limits.max_batch_size, by_spec.kv_cache.enable_prefix_caching) == (16, False)
    assert by_spec.limits.max_seq_len == 112

    config = read_build(file)
    assert config == read_build(None, **config.model_dump(exclude_unset=True))
    assert (config.model, config.output) == (str(checkpoint), tmp_path / "ours-engine")
    composition = read_composition(file, {})
    assert composition == CompositionSpec(
        tmp_path / "ours-engine", output, ComposeOptions(decoupled=False, exclude_input_in_output=True)
    )
    given = {"profile": "keda", "image": "registry.example/trierarch:1", "storage.uri": "pvc://engines/ours"}
    assert read_spec(file, given).name == "ours"


def test_options_go_before_the_spec(tmp_path: Path) -> None:
    file = tmp_path / "trierarch.yaml"
    file.write_text(
        "build: {model: demo, output: /engines/demo, max_batch_size: 8, speculation: [suffix]}\n"
        "compose: {engine: /engines/demo, output: /repository, decoupled: false, adapters: [/shelf]}\n"
    )
    config = read_build(file, max_batch_size=4, max_seq_len=None)
    assert config == read_build(None, model="demo", output="/engines/demo", max_batch_size=4, speculation=("suffix",))
    given = {"output": Path("/other"), "decoupled": True, "copy": None}
    assert read_composition(file, given) == CompositionSpec(
        Path("/engines/demo"), Path("/other"), ComposeOptions(adapters=(Path("/shelf"),))
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("deploy: {name: x}", "has no section compose"),
        ("compose: {}", "engine is missing; say it here, or in the section compose of --spec"),
        (
            "compose: {engine: /e, output: /r, decoupeld: true}",
            "compose.decoupeld is unknown; known are engine, output",
        ),
        ("compose: {engine: /e, output: /r, decoupled: maybe}", "compose.decoupled is 'maybe'"),
        ("compose: {engine: 3, output: /r}", "compose: engine and output are paths"),
        ("compose: {engine: /e, output: /r}\nbiuld: {}", "section biuld is unknown; there are build, compose, deploy"),
        ("compose: [", "cannot be read as YAML"),
    ],
)
def test_a_bad_spec_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trierarch.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_composition(file, {})
