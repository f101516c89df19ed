"""Building for TensorRT-LLM: what is written, the same each time, and what is refused before anything is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.adapters import random_adapter
from support.checkpoints import BOS, EOS, VOCAB_SIZE, random_checkpoint, random_model, save_checkpoint
from support.gguf_files import write_gguf
from support.heads import random_eagle3
from support.trtllm_facts import facts
from support.trtllm_models import (
    ENGINE_FAMILIES,
    build_for,
    prompt,
    record_of,
    reference_logits,
    relative_errors,
    save_random,
)
from trierarch.builder.adapter_source import read_adapter
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import AdapterError, CheckpointError, ConfigError, EngineError
from trierarch.builder.manifest import DrafterKind, DType, EngineManifest, Flow
from trierarch.builder.tensorrt_llm.build import describe
from trierarch.builder.verify import verify


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint("llama", tmp_path / "hf")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_two_builds_are_byte_identical(version: str, checkpoint: Path, tmp_path: Path) -> None:
    manifest = build_for(checkpoint, tmp_path / "a", version)
    shutil.copytree(checkpoint, tmp_path / "elsewhere" / "hf")
    build_for(tmp_path / "elsewhere" / "hf", tmp_path / "b", version)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert manifest == EngineManifest.load(tmp_path / "a") == verify(tmp_path / "a", digests=True)
    assert sorted(contents(tmp_path / "a")) == sorted([*manifest.files, "engine.json"])
    assert str(tmp_path).encode() not in contents(tmp_path / "a")["engine.json"]


def test_an_engine_of_1_2_is_a_checkpoint_to_be_compiled(checkpoint: Path, tmp_path: Path) -> None:
    record = record_of(build_for(checkpoint, tmp_path / "engine", tensor_parallel_size=2))
    assert (record.version, record.flow, record.model, record.checkpoint) == (
        "1.2",
        Flow.ENGINE,
        "checkpoint",
        "checkpoint",
    )
    assert record.compiled_by is None
    assert record.build_config is not None
    assert sorted(contents(tmp_path / "engine" / "checkpoint")) == [
        "config.json",
        "rank0.safetensors",
        "rank1.safetensors",
    ]


@pytest.mark.parametrize("family", ["llama", "llama-yarn", "qwen3-moe", "phi3", "gemma3"])
def test_an_engine_of_1_3_is_what_transformers_reads(family: str, tmp_path: Path) -> None:
    import transformers

    model = save_random(family, tmp_path / "hf")
    manifest = build_for(tmp_path / "hf", tmp_path / "engine", "1.3", dtype=DType.FLOAT32)
    assert record_of(manifest).model == "model"
    folder = str(tmp_path / "engine" / "model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    errors = relative_errors(reference_logits(loaded.eval(), prompt()), reference_logits(model, prompt()))
    assert errors.max() < 1e-5
    assert loaded.generation_config.eos_token_id in (EOS, [EOS])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.bos_token_id == BOS
    assert tokenizer.decode(tokenizer.encode("the thing", add_special_tokens=False)) == "the thing"
    assert "assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_gguf_file_is_as_good_as_what_it_was_made_of(version: str, tmp_path: Path) -> None:
    model = random_model("llama", seed=1)
    save_checkpoint(model, tmp_path / "hf")
    write_gguf(tmp_path / "hf", tmp_path / "llama.gguf")
    for source, name in ((tmp_path / "hf", "a"), (tmp_path / "llama.gguf", "b")):
        build_for(source, tmp_path / name, version, dtype=DType.FLOAT32)
    file = "checkpoint/rank0.safetensors" if version == "1.2" else "model/model.safetensors"
    ours, theirs = (load_file(str(tmp_path / name / file)) for name in ("a", "b"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if version == "1.3":
        import transformers

        assert transformers.AutoConfig.from_pretrained(str(tmp_path / "b" / "model")).model_type == "llama"


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_every_key_of_config_json_is_one_that_its_class_takes(family: str, tmp_path: Path) -> None:
    save_random(family, tmp_path / "hf")
    config = describe(
        BuildConfig.model_validate(
            {"model": str(tmp_path / "hf"), "output": tmp_path / "x", "target": "tensorrt_llm"}
            | {"tensorrt_llm_version": "1.2"}
        )
    )["pretrained_config"]
    known = facts()["checkpoint"]
    assert config["architecture"] in known["models"]
    named = {*known["PretrainedConfig"], *known[known["models"][config["architecture"]]]}
    assert config.keys() <= named
    assert set(known["required"]) <= config.keys()
    assert config["mapping"].keys() <= set(known["Mapping"])
    assert config.get("moe", {}).keys() <= set(known["MoeConfig"])
    assert config["position_embedding_type"] in known["position_embedding_types"]
    scaling = config["rotary_scaling"]
    assert scaling is None or scaling["rope_type"] in known["rotary_scaling_types"]
    assert not (tmp_path / "x").exists()


def test_the_type_is_the_checkpoints_where_nobody_chose(checkpoint: Path, tmp_path: Path) -> None:
    assert build_for(checkpoint, tmp_path / "a").dtype is DType.BFLOAT16
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    assert build_for(checkpoint, tmp_path / "b").dtype is DType.FLOAT16


def test_a_draft_lies_in_its_engine(checkpoint: Path, tmp_path: Path) -> None:
    for version in ("1.2", "1.3"):
        output = tmp_path / version
        manifest = build_for(checkpoint, output, version, draft=str(checkpoint), max_draft_tokens=3)
        draft = manifest.load_draft(output)
        assert draft is not None
        assert manifest.speculation is not None
        assert manifest.speculation.drafters == (DrafterKind.DRAFT_MODEL,)
        assert verify(output, digests=True) == manifest
        folder = "draft/model" if version == "1.3" else "draft/checkpoint"
        assert f"{folder}/config.json" in manifest.files
        assert record_of(draft).version == version
    said: Any = record_of(manifest).llm_args["speculative_config"]
    assert (said["decoding_type"], said["max_draft_len"]) == ("Draft_Target", 3)
    assert (tmp_path / "1.3" / said["speculative_model_dir"] / "config.json").is_file()


def test_a_draft_shares_the_memory_for_keys_and_values(checkpoint: Path, tmp_path: Path) -> None:
    small = random_checkpoint("llama", tmp_path / "small", num_hidden_layers=1)
    options = {"kv_cache_bytes": 1 << 20, "draft": str(small)}
    manifest = build_for(checkpoint, tmp_path / "engine", "1.3", **options)
    token = 2 * 2 * 16 * 2  # keys and values of two heads in bfloat16, a layer
    said: Any = record_of(manifest).llm_args["kv_cache_config"]
    assert said["max_tokens"] == ((1 << 20) * 3 // 4) // (3 * token)
    taken = []
    for more in ({}, options):
        with pytest.raises(ConfigError) as error:
            build_for(checkpoint, tmp_path / "other", "1.3", gpu_memory=1000, **more)
        taken.append(int(str(error.value).partition("weights take ")[2].split()[0]))
    assert taken[1] - taken[0] > 2 * 2 * VOCAB_SIZE * 64, "the draft's vocabulary alone is more"


def test_a_head_lies_in_its_engine_as_it_came(checkpoint: Path, tmp_path: Path) -> None:
    random_eagle3(tmp_path / "head")
    manifest = build_for(checkpoint, tmp_path / "engine", "1.3", draft=str(tmp_path / "head"), speculation=("eagle3",))
    draft = manifest.load_draft(tmp_path / "engine")
    assert draft is not None
    assert draft.head is not None
    assert draft.head.kind is DrafterKind.EAGLE3
    assert verify(tmp_path / "engine", digests=True) == manifest
    for path in (tmp_path / "head").iterdir():
        assert (tmp_path / "engine" / "draft" / "model" / path.name).read_bytes() == path.read_bytes()


class Stop:
    """Progress that ends the build once something is written."""

    def stage(self, name: str, total: int | None, unit: str = "bytes") -> None:
        pass

    def advance(self, amount: int) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_build_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    from trierarch.builder.build import build

    config = BuildConfig.model_validate({"model": str(checkpoint), "output": tmp_path / "e", "target": "tensorrt_llm"})
    with pytest.raises(KeyboardInterrupt):
        build(config, Stop())
    assert os.listdir(tmp_path) == ["hf"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tensor_parallel_size": 3},
            r"tensor_parallel_size is 3: LlamaForCausalLM has 4 attention heads, .*; take 1, 2 or 4$",
        ),
        ({"tensor_parallel_size": 8}, r"tensor_parallel_size is 8: LlamaForCausalLM has 4 attention heads"),
        ({"pipeline_parallel_size": 2}, r"pipeline_parallel_size is 2: 3 layers do not split evenly; take 1 or 3$"),
        ({"quantization": "fp8", "gpu_architecture": "sm_80"}, r"'sm_80': FP8 needs sm_89 or later; choose another"),
        ({"quantization": "nvfp4", "gpu_architecture": "sm_90"}, r"'sm_90': NVFP4 needs sm_100 or later"),
        ({"kv_cache_dtype": "fp8", "gpu_architecture": "sm_86"}, r"'sm_86': FP8 needs sm_89 or later"),
        (
            {"quantization": "source"},
            r"quantization is 'source': the engine flow of TensorRT-LLM takes int8, int4, int8_sq",
        ),
        (
            {"quantization": "int8", "tensorrt_llm_version": "1.3"},
            r"the pytorch flow of TensorRT-LLM takes int4_awq, fp8",
        ),
        ({"quantization": "int4_awq"}, r"a GPU's matrices have 64, 96 inputs, and blocks of 128 or 64 must divide all"),
        ({"quantization": "fp8", "dtype": "float32"}, r"dtype is 'float32': FP8 has activations of 16 bits; choose bf"),
        ({"kv_cache_dtype": "int8"}, r"kv_cache_dtype is 'int8': for TensorRT-LLM it is fp8, or left out"),
        ({"kv_cache_dtype": "float16"}, r"kv_cache_dtype is 'float16': .* which is bfloat16; leave it out"),
        ({"kv_cache_bytes": 100}, r"kv_cache_bytes is 100: one block of this model takes 12288"),
        ({"gpu_memory": 100_000}, r"gpu_memory is 100000: weights take \d+ of it, and keys and values of one sequence"),
        (
            {"gpu_memory": 600_000, "kv_cache_bytes": 1 << 20},
            r"values of kv_cache_bytes \(2730 tokens\) 1048320, for which",
        ),
        ({"gpu_memory": 900_000, "max_adapters": 16}, r"gpu_memory is 900000: weights take \d+ of it, \d+ adapters"),
        ({"max_seq_len": 257}, r"max_seq_len is 257: the checkpoint's window is 256"),
        ({"tensorrt_llm_version": "1.9"}, r"tensorrt_llm_version is '1.9': known are 1.0, 1.1, 1.2, 1.3"),
        (
            {"adapters": {"french": Path("x")}},
            r"there are 1 adapters for the engine, and max_adapters is 0; say how many",
        ),
        (
            {"kv_cache_bytes": 50_000},
            r"kv_cache_bytes hold 130 tokens of 384 bytes, .* up to 256, max_seq_len; take 98304, or a smaller",
        ),
        (
            {"adapter_host_bytes": 1000, "max_adapters": 1, "max_lora_rank": 4},
            r"adapter_host_bytes is 1000: one adapter of max_lora_rank 4 takes \d+; take at least as much",
        ),
        (
            {"gather_logits": True, "speculation": ("prompt_lookup",), "tensorrt_llm_version": "1.3"},
            r"gather_logits is True, and speculation is prompt_lookup",
        ),
        (
            {"tensorrt_llm_sampler": "trtllm", "tensorrt_llm_version": "1.3"},
            r"tensorrt_llm_sampler is 'trtllm': TensorRT-LLM 1.3 samples by torch",
        ),
        (
            {"draft": "int4"},
            r"draft is 'int4': TensorRT-LLM's draft is a checkpoint of its own, neither the model again",
        ),
        (
            {"speculation": ("mtp",), "tensorrt_llm_version": "1.2"},
            r"TensorRT engines take the guesses of a draft model",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(
    options: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_for(checkpoint, tmp_path / "engine", version=options.pop("tensorrt_llm_version", "1.2"), **options)
    assert os.listdir(tmp_path) == ["hf"]


def test_what_fits_is_let_through(checkpoint: Path, tmp_path: Path) -> None:
    options = {"gpu_architecture": "sm_90", "gpu_memory": 1_000_000, "kv_cache_bytes": 300_000}
    build_for(checkpoint, tmp_path / "engine", **options)
    build_for(checkpoint, tmp_path / "replicated", tensor_parallel_size=4)


@pytest.mark.parametrize(
    ("family", "version", "message"),
    [
        ("smollm3", "1.2", r"its engine flow has no SmolLM3ForCausalLM; known are .*; build it with --target torch"),
        ("smollm3", "1.3", r"its pytorch flow has no SmolLM3ForCausalLM"),
        ("gemma2", "1.3", r"its pytorch flow has no Gemma2ForCausalLM; .*; build with --tensorrt-llm-version 1.2"),
    ],
)
def test_a_family_that_is_not_there_is_refused_by_name(family: str, version: str, message: str, tmp_path: Path) -> None:
    random_checkpoint(family, tmp_path / "hf")
    with pytest.raises(ConfigError, match=message):
        build_for(tmp_path / "hf", tmp_path / "engine", version)


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        ("gemma3", {}, r"rope scaling 'linear' of the full layers alone is not TensorRT-LLM's engines'"),
        ("qwen3-moe", {}, r"with experts in some layers only is not TensorRT-LLM's; build it with --tensorrt-llm-ver"),
        ("qwen3", {"attention_bias": True}, r"attention_bias is True, which TensorRT-LLM's engines of it do not have"),
        ("phi3", {"head_dim": 32}, r"4 heads of 32 are not its hidden_size 64"),
    ],
)
def test_what_engines_do_not_compute_is_refused(
    family: str, overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    random_checkpoint(family, tmp_path / "hf", **overrides)
    with pytest.raises(CheckpointError, match=message):
        build_for(tmp_path / "hf", tmp_path / "engine")


def test_modelopt_is_not_asked_for_what_it_does_not_write(tmp_path: Path) -> None:
    random_checkpoint("gemma2", tmp_path / "hf")
    with pytest.raises(
        ConfigError, match=r"writes such TensorRT-LLM checkpoints of Llama.*, and not of Gemma2ForCausalLM"
    ):
        build_for(tmp_path / "hf", tmp_path / "engine", quantization="fp8")


def test_a_record_and_a_target_that_disagree_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    manifest = build_for(checkpoint, tmp_path / "engine")
    path = tmp_path / "engine" / "engine.json"
    for change, message in (
        ({"tensorrt_llm": None}, r"target is 'tensorrt_llm', and tensorrt_llm says otherwise; rebuild"),
        (
            {"tensorrt_llm": record_of(manifest).model_copy(update={"tensor_parallel_size": 2})},
            r"files has no checkpoint/rank1.safetensors, which TensorRT-LLM opens; rebuild",
        ),
    ):
        path.write_text(manifest.model_copy(update=change).to_json())
        with pytest.raises(EngineError, match=message):
            verify(tmp_path / "engine")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_adapters_lie_in_their_engine(version: str, checkpoint: Path, tmp_path: Path) -> None:
    random_adapter(checkpoint, tmp_path / "peft", rank=4)
    options = {"max_adapters": 2, "max_lora_rank": 8, "adapters": {"french": tmp_path / "peft"}}
    manifest = build_for(checkpoint, tmp_path / "engine", version, **options)
    assert verify(tmp_path / "engine", digests=True) == manifest
    packed = tmp_path / "engine" / "adapters" / "french.safetensors"
    found = read_adapter(packed, tmp_path / "engine", manifest)
    assert found.manifest.rank == 4
    options["adapters"] = {"german": packed}
    again = build_for(checkpoint, tmp_path / "again", version, **options)
    assert again.files["adapters/german.safetensors"] == manifest.files["adapters/french.safetensors"]
    config = {"model": str(checkpoint), "output": tmp_path / "x", "target": "tensorrt_llm", **options}
    assert describe(BuildConfig.model_validate(config))["adapters"] == ["german"]


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"use_dora": True}, r"adapter 'a': .*gains"),
        (
            {"targets": ("q_proj", "lm_head")},
            r"adapter 'a': it adapts lm_head, and TensorRT-LLM adapts the layers",
        ),
        ({"rank": 16}, r"adapter 'a': .* has rank 16, lora.max_rank is 8"),
    ],
)
def test_adapters_that_nobody_serves_are_refused(
    adapter: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    random_adapter(checkpoint, tmp_path / "peft", **{"rank": 4, **adapter})
    with pytest.raises(AdapterError, match=message):
        build_for(checkpoint, tmp_path / "e", "1.3", max_adapters=2, max_lora_rank=8, adapters={"a": tmp_path / "peft"})
    assert sorted(os.listdir(tmp_path)) == ["hf", "peft"]
