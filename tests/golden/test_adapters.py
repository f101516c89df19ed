"""Packed adapters against PEFT: each family's matrices recomposed from the pieces equal those that PEFT merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.adapters import (
    adapted_model,
    base_model,
    linear_modules,
    load_adapter,
    merged_model,
    random_adapter,
    save_adapter,
    train_adapter,
)
from support.checkpoints import FAMILIES, random_checkpoint
from trierarch.builder.adapter import STACKED, AdapterTensors, piece_shape, to_floats
from trierarch.builder.adapter_source import read_adapter
from trierarch.builder.architectures import FAMILIES as TABLE
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.engine_matrices import EngineMatrices
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import DType, EngineManifest
from trierarch.builder.peft_config import PeftConfig

Matrix = NDArray[np.float32]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "alpha": 11},
    "dora": {"use_dora": True},
    "patterns": {
        "rank_pattern": {"o_proj": 3, r"layers\.1\.self_attn\.(q|k|qkv)_proj": 5},
        "alpha_pattern": {"layers.0.self_attn.o_proj": 7},
    },
}


@pytest.fixture(scope="module", params=FAMILIES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and an engine of it in float32."""
    directory = tmp_path_factory.mktemp(request.param)
    return random_checkpoint(request.param, directory / "checkpoint"), engine_of(directory / "checkpoint")


def engine_of(checkpoint: Path, **options: Any) -> Path:
    engine = checkpoint.with_name("engine")
    build(
        BuildConfig(**{"model": str(checkpoint), "output": engine, "dtype": DType.FLOAT32, "compile": False, **options})
    )
    return engine


def packed(directory: Path, engine: Path) -> AdapterTensors:
    return read_adapter(directory, engine, EngineManifest.load(engine))


def recomposed(tensors: AdapterTensors, matrices: EngineMatrices, stem: str, piece: str) -> Matrix:
    """gain W + b a: what a piece computes with; of embed, its table."""
    weight = np.concatenate([rows for _, rows in matrices.chunks(stem, piece)])
    parts = {
        part: to_floats(tensors.arrays[f"{stem}.{part}"])
        for part in ("a", "b", "gain", "weight")
        if f"{stem}.{part}" in tensors.arrays
    }
    if "weight" in parts:
        return parts["weight"]
    if "gain" in parts:
        weight = parts["gain"][:, None] * weight
    if "a" in parts:
        weight = weight + (parts["a"] @ parts["b"].T if piece == "embed" else parts["b"] @ parts["a"])
    return weight


def assert_near(ours: Matrix, theirs: torch.Tensor) -> None:
    error = np.linalg.norm(ours - theirs.float().numpy())
    assert error < 1e-5 * float(theirs.float().norm())


def assert_merged(tensors: AdapterTensors, engine: Path, merged: dict[str, torch.Tensor]) -> None:
    """Every matrix that may be adapted is the merged model's, adapted or not."""
    manifest = EngineManifest.load(engine)
    matrices, family = EngineMatrices(engine, manifest), TABLE[manifest.architecture.family]
    for index, layer in enumerate(manifest.architecture.layers):
        for matrix in ("qkv", "o") if layer.is_moe else ("qkv", "o", "gate_up", "down"):
            names = [f"model.layers.{index}.{source}.weight" for source in family.sources[matrix]]
            ours = [recomposed(tensors, matrices, f"layers.{index}.{piece}", piece) for piece in STACKED[matrix]]
            assert_near(np.concatenate(ours), torch.cat([merged[name] for name in names]))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_family_is_what_peft_merges(built: tuple[Path, Path], kind: dict[str, Any], tmp_path: Path) -> None:
    checkpoint, engine = built
    directory = random_adapter(checkpoint, tmp_path / "adapter", **kind)
    tensors = packed(directory, engine)

    merged = merged_model(checkpoint, directory).state_dict()
    assert_merged(tensors, engine, merged)

    plain = base_model(checkpoint).state_dict()
    changed = [name for name in plain if not torch.equal(plain[name], merged[name])]
    architecture = EngineManifest.load(engine).architecture
    adapted = sum(len(linear_modules(checkpoint)) if not layer.is_moe else 4 for layer in architecture.layers)
    assert len(changed) >= architecture.num_layers
    assert tensors.manifest.is_dora == bool(kind.get("use_dora"))
    if not any(layer.is_moe for layer in architecture.layers):
        assert len(changed) == adapted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_saved_in_half_precision(built: tuple[Path, Path], dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint, engine = built
    directory = random_adapter(checkpoint, tmp_path / "adapter", dtype=dtype)
    assert_merged(packed(directory, engine), engine, merged_model(checkpoint, directory).state_dict())


UNTIED = ("llama", "phi3", "gemma2", "qwen3")
OUTER: dict[str, dict[str, Any]] = {
    "lora": {"targets": ("embed_tokens", "lm_head", "o_proj")},
    "rslora": {"targets": ("embed_tokens", "lm_head"), "use_rslora": True},
    "dora": {"targets": ("embed_tokens", "lm_head", "o_proj"), "use_dora": True},
    "whole": {"modules_to_save": ("embed_tokens", "lm_head"), "targets": ("o_proj",)},
    "whole embed": {"modules_to_save": ("embed_tokens",), "targets": ("lm_head",)},
    "a regular expression": {"targets": r".*(lm_head|layers\.[01]\.self_attn\.o_proj)"},
}


@pytest.mark.parametrize("name", UNTIED)
@pytest.mark.parametrize("kind", OUTER.values(), ids=OUTER)
def test_embeddings_and_logits_are_what_peft_merges(name: str, kind: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = random_checkpoint(name, tmp_path / "checkpoint", tie_word_embeddings=False)
    engine = engine_of(checkpoint)
    directory = random_adapter(checkpoint, tmp_path / "adapter", **kind)
    tensors = packed(directory, engine)

    merged = merged_model(checkpoint, directory).state_dict()
    assert_merged(tensors, engine, merged)
    matrices = EngineMatrices(engine, EngineManifest.load(engine))
    assert_near(recomposed(tensors, matrices, "lm_head", "lm_head"), merged["lm_head.weight"])
    assert_near(recomposed(tensors, matrices, "embed", "embed"), merged["model.embed_tokens.weight"])


@pytest.mark.parametrize("kind", ["whole", "low"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_tied_embeddings_are_adapted_apart_unless_the_adapter_ties_them(
    kind: str, is_tied: bool, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "checkpoint", tie_word_embeddings=True)
    engine = engine_of(checkpoint)
    options = (
        {"modules_to_save": ("embed_tokens",), "targets": ("o_proj",)}
        if kind == "whole"
        else {"targets": ("embed_tokens",)}
    )
    directory = random_adapter(checkpoint, tmp_path / "adapter", ensure_weight_tying=is_tied, **options)
    tensors = packed(directory, engine)
    manifest = EngineManifest.load(engine)
    matrices = EngineMatrices(engine, manifest)
    embed, lm_head = (torch.from_numpy(recomposed(tensors, matrices, stem, stem)) for stem in ("embed", "lm_head"))
    theirs = load_adapter(checkpoint, directory)
    with torch.inference_mode():
        ids = torch.arange(40)[None]
        assert_near(embed[:40].numpy(), theirs.get_input_embeddings()(ids)[0])
        output = theirs(input_ids=ids, output_hidden_states=True)
        assert_near((output.hidden_states[-1][0] @ lm_head.T).numpy(), output.logits[0])


def test_the_ends_of_names_match_as_in_peft() -> None:
    from peft.utils.other import get_pattern_key

    names = [f"model.layers.{index}.self_attn.{name}_proj" for index in (0, 1, 10) for name in "qk"] + ["lm_head"]
    keys = [
        "q_proj",
        "proj",
        "_proj",
        "layers.1.self_attn.k_proj",
        r"layers\.1.*",
        ".*",
        "^model.layers.0.self_attn.q_proj",
        "head",
        "lm_.*",
        "a|q_proj",
    ]
    for key in keys:
        config = PeftConfig.parse(json.dumps({"peft_type": "LORA", "r": 8, "rank_pattern": {key: 4}}).encode())
        for name in names:
            assert (config.rank(name) == 4) == (get_pattern_key([key], name) == key), (key, name)


def test_a_trained_adapter_learned_its_text(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "checkpoint")
    engine = engine_of(checkpoint)
    text = "the king is in the ring and singing the thing. " * 4
    directory = train_adapter(checkpoint, tmp_path / "adapter", text, steps=30, rank=8)
    merged = merged_model(checkpoint, directory)
    assert_merged(packed(directory, engine), engine, merged.state_dict())

    from tokenizers import Tokenizer

    ids = torch.tensor([Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids])
    with torch.inference_mode():
        after, before = (float(model(input_ids=ids, labels=ids).loss) for model in (merged, base_model(checkpoint)))
    assert after < before / 2


def test_equal_seeds_give_equal_adapters(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "checkpoint")
    files = [random_adapter(checkpoint, tmp_path / name, seed=int(name[0])) for name in ("1a", "1b", "2")]
    first, again, other = ((file / "adapter_model.safetensors").read_bytes() for file in files)
    assert first == again != other


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_changed_the_base_is_refused_until_it_is_converted(start: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "checkpoint")
    engine = engine_of(checkpoint)
    model = adapted_model(checkpoint, rank=4, alpha=4, init_lora_weights=start)
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="path_initial_model_for_weight_conversion"):
        packed(tmp_path / "adapter", engine)


def test_shapes_of_pieces_are_those_of_the_checkpoint(built: tuple[Path, Path]) -> None:
    checkpoint, engine = built
    architecture = EngineManifest.load(engine).architecture
    shapes = {name: tuple(weight.shape) for name, weight in base_model(checkpoint).state_dict().items()}
    assert shapes["model.layers.0.self_attn.o_proj.weight"] == piece_shape(architecture, "o")
    assert shapes["model.embed_tokens.weight"] == piece_shape(architecture, "embed")[::-1]
