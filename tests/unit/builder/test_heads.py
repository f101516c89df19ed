"""A head is built inside its engine: from its own checkpoint or the model's, fitted to the model, and whole with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import VOCAB_SIZE, random_checkpoint
from support.heads import DRAFT_VOCAB_SIZE, random_eagle3, random_mimo, read_tensors
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import CheckpointError, ConfigError, UserError
from trierarch.builder.manifest import DrafterKind, DType, EngineManifest, Head, KvType
from trierarch.builder.verify import verify
from trierarch.orchestrator.engine_summary import summary_rows


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `target`, a `head` for it, and a `mimo`; never changed."""
    directory = tmp_path_factory.mktemp("checkpoints")
    random_checkpoint("llama", directory / "target")
    random_eagle3(directory / "head")
    random_mimo(directory / "mimo")
    return directory


def config_of(checkpoints: Path, output: Path, head: Path | None, **options: Any) -> BuildConfig:
    chosen: dict[str, Any] = {"dtype": DType.FLOAT32, "compile": False, "max_seq_len": 200, "output": output}
    if head is None:
        chosen |= {"model": str(checkpoints / "mimo"), "speculation": ("mtp",)}
    else:
        chosen |= {"model": str(checkpoints / "target"), "speculation": ("eagle3",), "draft": str(head)}
    return BuildConfig.model_validate(chosen | options)


def head_of(engine: Path) -> EngineManifest:
    """Of a sound engine, whose every file the manifest digests."""
    manifest = verify(engine, digests=True)
    files = {str(path.relative_to(engine)) for path in engine.rglob("*") if path.is_file()}
    assert files == {*manifest.files, "engine.json"}
    head = manifest.load_draft(engine)
    assert head is not None
    return head


def test_an_eagle3_head_becomes_the_draft(checkpoints: Path, tmp_path: Path) -> None:
    config = config_of(checkpoints, tmp_path / "engine", checkpoints / "head", kv_cache_bytes=1 << 20, block_size=8)
    manifest = build(config)
    draft = head_of(tmp_path / "engine")
    assert manifest.head is None
    assert manifest.speculation is not None
    assert manifest.speculation.drafters == (DrafterKind.EAGLE3,)
    assert manifest.speculation.draft_engine == "draft"
    assert draft.head == Head(
        kind=DrafterKind.EAGLE3, taps=(1, 2, 3), target_hidden_size=64, target_vocab_size=VOCAB_SIZE
    )
    assert (draft.name, draft.architecture.vocab_size, draft.architecture.num_layers) == ("head", DRAFT_VOCAB_SIZE, 1)
    assert (draft.kernels, draft.quantization, draft.speculation) == (None, None, None)
    assert sorted(draft.files) == ["weights.safetensors"]
    own, its = manifest.kv_cache, draft.kv_cache
    assert (own.num_bytes or 0) + (its.num_bytes or 0) <= 1 << 20
    assert (own.num_bytes or 0) // (8 * own.bytes_per_token) == (its.num_bytes or 0) // (8 * its.bytes_per_token)
    weights = load_file(tmp_path / "engine" / "draft" / "weights.safetensors")
    theirs, target = (
        load_file(checkpoints / "head/model.safetensors"),
        load_file(checkpoints / "target/model.safetensors"),
    )
    assert torch.equal(weights["embed.weight"], target["model.embed_tokens.weight"])
    stacked = torch.cat([theirs[f"midlayer.self_attn.{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(weights["layers.0.qkv.weight"], stacked)
    assert torch.equal(weights["head.fc.weight"], theirs["fc.weight"])
    assert torch.equal(weights["head.target_ids"], theirs["d2t"] + torch.arange(DRAFT_VOCAB_SIZE))
    assert weights["head.target_ids"].unique().numel() == DRAFT_VOCAB_SIZE


@pytest.mark.parametrize("prefix", ["midlayer.", "layers.0.", "model.midlayer.", "model.layers.0."])
def test_every_spelling_of_a_head_is_the_same_head(prefix: str, checkpoints: Path, tmp_path: Path) -> None:
    other = random_eagle3(tmp_path / "head", prefix=prefix)
    if prefix.startswith("model."):
        path, tensors = other / "model.safetensors", read_tensors(other)
        save_file({n if "layer" in n else n.replace("norm.", "model.norm."): one for n, one in tensors.items()}, path)
    build(config_of(checkpoints, tmp_path / "a", checkpoints / "head"))
    build(config_of(checkpoints, tmp_path / "b", other))
    assert (tmp_path / "a/draft/engine.json").read_bytes() == (tmp_path / "b/draft/engine.json").read_bytes()


def test_a_head_keeps_what_it_has_of_its_own(checkpoints: Path, tmp_path: Path) -> None:
    """Biases, an embedding, another width than the model's, the model's whole vocabulary."""
    options = {"hidden_size": 48, "target_hidden_size": 64, "num_attention_heads": 3, "num_key_value_heads": 3}
    head = random_eagle3(
        tmp_path / "head",
        has_biases=True,
        has_embedding=True,
        has_fc_bias=True,
        draft_vocab_size=None,
        norm_before_residual=True,
        **options,
    )
    build(
        config_of(
            checkpoints,
            tmp_path / "engine",
            head,
            dtype=DType.BFLOAT16,
            kv_cache_dtype=KvType.INT8,
            accuracy_check=False,
        )
    )
    draft = head_of(tmp_path / "engine")
    assert draft.head is not None
    assert (draft.head.fc_bias, draft.head.norm_before_residual) == (True, True)
    shape = draft.architecture
    assert (shape.qkv_bias, shape.o_bias, shape.mlp_bias, shape.hidden_size) == (True, True, True, 48)
    assert (draft.dtype, draft.kv_cache.dtype) == (DType.BFLOAT16, KvType.INT8)
    weights, theirs = (
        load_file(path) for path in (tmp_path / "engine/draft/weights.safetensors", head / "model.safetensors")
    )
    assert torch.equal(weights["embed.weight"], theirs["embed_tokens.weight"].bfloat16())
    assert torch.equal(weights["head.target_ids"], torch.arange(VOCAB_SIZE))
    assert "layers.0.down.bias" in weights


@pytest.mark.parametrize(
    ("config", "num_layers", "taps"),
    [
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [6, 0, 3]}},
            7,
            (1, 4, 7),
        ),  # layers whose output is read
        ({"eagle_config": None, "eagle_aux_hidden_state_layer_ids": [1, 4, 7]}, 7, (1, 4, 7)),  # after so many
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}, 10, (2, 5, 7)),
        ({"eagle_config": None}, 10, (2, 5, 7)),
    ],
)
def test_which_hidden_states_it_reads(
    config: dict[str, Any], num_layers: int, taps: tuple[int, ...], tmp_path: Path
) -> None:
    random_checkpoint("llama", tmp_path / "target", num_hidden_layers=num_layers)
    build(config_of(tmp_path, tmp_path / "engine", random_eagle3(tmp_path / "head", **config)))
    head = head_of(tmp_path / "engine").head
    assert head is not None
    assert head.taps == taps


def test_what_speculators_nests_is_read(checkpoints: Path, tmp_path: Path) -> None:
    layer = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4}
    layer |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 5000.0}
    head = random_eagle3(tmp_path / "head")
    tops = {"architectures": ["Eagle3Speculator"], "draft_vocab_size": DRAFT_VOCAB_SIZE}
    tops |= {
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
        "transformer_layer_config": layer | {"vocab_size": VOCAB_SIZE},
    }
    (head / "config.json").write_text(json.dumps(tops), encoding="utf-8")
    build(config_of(checkpoints, tmp_path / "a", checkpoints / "head"))
    build(config_of(checkpoints, tmp_path / "b", head))
    assert head_of(tmp_path / "a") == head_of(tmp_path / "b")


def test_a_multi_token_prediction_layer_becomes_the_draft(checkpoints: Path, tmp_path: Path) -> None:
    manifest = build(config_of(checkpoints, tmp_path / "engine", None, quantization="int8", accuracy_check=False))
    draft = head_of(tmp_path / "engine")
    assert manifest.architecture.family == "MiMoForCausalLM"
    assert draft.head == Head(kind=DrafterKind.MTP, taps=(3,), target_hidden_size=64, target_vocab_size=VOCAB_SIZE)
    assert (draft.name, draft.architecture.num_layers, draft.quantization) == ("mimo-mtp", 1, None)
    weights = load_file(tmp_path / "engine" / "draft" / "weights.safetensors")
    theirs = load_file(checkpoints / "mimo" / "model.safetensors")
    layer = "model.mtp_layers.0."
    for name, source in (
        ("head.fc.weight", f"{layer}input_proj.weight"),
        ("head.hidden_norm.weight", f"{layer}hidden_layernorm.weight"),
        ("head.token_norm.weight", f"{layer}token_layernorm.weight"),
        ("norm.weight", f"{layer}final_layernorm.weight"),
        ("layers.0.o.weight", f"{layer}self_attn.o_proj.weight"),
        ("embed.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ):
        assert torch.equal(weights[name], theirs[source]), name


def test_a_tied_matrix_makes_the_heads_logits_too(tmp_path: Path) -> None:
    random_mimo(tmp_path / "mimo", tie_word_embeddings=True)
    build(config_of(tmp_path, tmp_path / "engine", None))
    weights = load_file(tmp_path / "engine" / "draft" / "weights.safetensors")
    assert torch.equal(weights["lm_head.weight"], weights["embed.weight"])


def test_the_layer_is_left_out_where_nobody_asks_for_it(checkpoints: Path, tmp_path: Path) -> None:
    manifest = build(config_of(checkpoints, tmp_path / "engine", None, speculation=None))
    assert manifest.load_draft(tmp_path / "engine") is None


def test_the_summary_tells_of_the_head(checkpoints: Path, tmp_path: Path) -> None:
    manifest = build(config_of(checkpoints, tmp_path / "engine", checkpoints / "head"))
    rows = dict(summary_rows(manifest, head_of(tmp_path / "engine")))
    assert rows["speculation"] == "eagle3: up to 16 tokens ahead"
    assert rows["draft"].endswith("a head on the hidden states after 1, 2 and 3 layers")


def edited(source: Path, target: Path, config: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> Path:
    """A copy of a checkpoint with other settings, and with tensors added, replaced or (None) taken out."""
    shutil.copytree(source, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    merged = read_tensors(source) | tensors
    save_file({name: one for name, one in merged.items() if one is not None}, target / "model.safetensors")
    return target


BEYOND = torch.full((DRAFT_VOCAB_SIZE,), VOCAB_SIZE)


@pytest.mark.parametrize(
    ("config", "tensors", "error", "message"),
    [
        ({"num_hidden_layers": 2}, {}, CheckpointError, "num_hidden_layers is 2: heads of one layer are run"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, {}, CheckpointError, "use_aux_hidden_state is false"),
        ({"target_hidden_size": 32}, {}, ConfigError, "it reads hidden states of 32, the model's are 64; take a head"),
        ({"vocab_size": 400}, {}, ConfigError, "it takes 400 token ids, the model has 320; take a head"),
        ({"eagle_config": None}, {}, ConfigError, "after 0, 1, 2 layers, and the model has 3; take a head"),
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}},
            {},
            ConfigError,
            "after 2, 3, 4 layers, and the model has 3",
        ),
        ({"draft_vocab_size": 90}, {}, CheckpointError, r"lm_head.weight has shape \(100, 64\), but config.json says"),
        ({"hidden_act": "sine"}, {}, CheckpointError, "hidden_act is 'sine'"),
        ({"norm_before_residual": "maybe"}, {}, CheckpointError, "norm_before_residual is 'maybe'"),
        ({}, {"d2t": None}, CheckpointError, "no d2t that says which of the model's 320 token ids its 100 guesses are"),
        ({}, {"d2t": BEYOND[:7]}, CheckpointError, "d2t has 7 entries for 100 guesses"),
        ({}, {"d2t": BEYOND}, CheckpointError, "d2t leads to ids beyond the 320 of the model"),
        ({}, {"d2t": BEYOND.float()}, CheckpointError, "d2t is of type float32 in place of an integer"),
        ({}, {"norm.weight": None}, CheckpointError, "the checkpoint lacks model.norm.weight"),
        (
            {},
            {"mask_hidden": torch.zeros(3)},
            CheckpointError,
            "the checkpoint has mask_hidden, which Llama.* does not",
        ),
        (
            {},
            {"fc.weight": None, "midlayer.hidden_norm.weight": None},
            ConfigError,
            "it is no EAGLE-3 head, for it has neither fc.weight nor hidden_norm.weight; give one, or name draft_model",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_named(
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor | None],
    error: type[UserError],
    message: str,
    checkpoints: Path,
    tmp_path: Path,
) -> None:
    head = edited(checkpoints / "head", tmp_path / "other", config, **tensors)
    with pytest.raises(error, match=rf"^draft is '.*other': .*{message}"):
        build(config_of(checkpoints, tmp_path / "engine", head))
    assert not (tmp_path / "engine").exists()


def test_a_head_of_another_width_needs_an_embedding_of_its_own(checkpoints: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "target_hidden_size": 64, "num_attention_heads": 3, "num_key_value_heads": 3}
    with pytest.raises(CheckpointError, match=r"no embed_tokens.weight, .*: hidden_size is 48 and the model's 64"):
        build(config_of(checkpoints, tmp_path / "engine", random_eagle3(tmp_path / "head", **sizes)))


def test_what_is_no_head_and_what_is_one_are_told_apart(checkpoints: Path, tmp_path: Path) -> None:
    build(config_of(checkpoints, tmp_path / "sound", checkpoints / "head"))
    target, head = checkpoints / "target", checkpoints / "head"
    asked: tuple[tuple[Path | str, str, str], ...] = (
        (target, "eagle3", "it is no EAGLE-3 head"),
        (tmp_path / "sound", "eagle3", "it is an engine; give the checkpoint of a head"),
        ("/no/such/place", "eagle3", "no such directory or file"),
        (head, "draft_model", "it is a head on hidden states, no model; name eagle3 in the speculation"),
        (tmp_path / "sound" / "draft", "draft_model", "it has no tokenizer.json"),
    )
    for draft, kind, message in asked:
        with pytest.raises(UserError, match=rf"draft is '.*': {message}"):
            build(config_of(checkpoints, tmp_path / "engine", head, draft=str(draft), speculation=(kind,)))


def test_a_model_without_such_a_layer_is_named(checkpoints: Path, tmp_path: Path) -> None:
    without = (
        r"speculation names mtp, and target carries no multi-token prediction layer; .*known are .*MiMoForCausalLM"
    )
    with pytest.raises(ConfigError, match=without):
        build(config_of(checkpoints, tmp_path / "engine", None, model=str(checkpoints / "target")))
    stripped = shutil.copytree(checkpoints / "mimo", tmp_path / "stripped")
    tensors = read_tensors(stripped)
    save_file({name: one for name, one in tensors.items() if "mtp" not in name}, stripped / "model.safetensors")
    with pytest.raises(ConfigError, match=r"speculation names mtp, and stripped carries no"):
        build(config_of(checkpoints, tmp_path / "engine", None, model=str(stripped)))
    damaged = edited(checkpoints / "mimo", tmp_path / "damaged", None, **{"model.mtp_layers.0.input_proj.weight": None})
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks model.mtp_layers.0.input_proj.weight"):
        build(config_of(checkpoints, tmp_path / "engine", None, model=str(damaged)))


@pytest.mark.parametrize("kind", ["eagle3", "mtp"])
def test_two_builds_are_byte_identical(kind: str, checkpoints: Path, tmp_path: Path) -> None:
    head = checkpoints / "head" if kind == "eagle3" else None
    for name in "ab":
        build(config_of(checkpoints, tmp_path / name, head))
    contents = [
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in "ab"
    ]
    assert contents[0] == contents[1]


def test_a_head_of_another_kind_than_the_engine_says_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    build(config_of(checkpoints, tmp_path / "engine", checkpoints / "head"))
    path = tmp_path / "engine" / "engine.json"
    document = json.loads(path.read_text())
    document["speculation"]["drafters"] = ["draft_model"]
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"its speculation names draft_model, and draft is for eagle3; rebuild"):
        verify(tmp_path / "engine")
