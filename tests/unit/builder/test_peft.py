"""PEFT directories: what they mean for an engine, and what is refused. PEFT's own word on it is in tests/golden."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.packed_adapters import taking_adapters
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from trierarch.builder.adapter import AdapterTensors, to_floats
from trierarch.builder.adapter_check import check_adapter
from trierarch.builder.adapter_source import AdapterSource, read_adapter
from trierarch.builder.codes import pack_nibbles
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import DType, EngineManifest, Layer, Moe, Quantization, WeightType
from trierarch.builder.packed_adapter import digest_of
from trierarch.builder.safetensors_file import write_safetensors
from trierarch.builder.tensors import Array

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
PREFIX = "base_model.model."
Q0 = "model.layers.0.self_attn.q_proj"


def engine_of(tmp_path: Path, dtype: DType = DType.FLOAT32, **architecture: Any) -> tuple[Path, EngineManifest]:
    """An engine with weights, and its manifest."""
    shape = tiny_architecture(**({"family": "LlamaForCausalLM", "tie_embeddings": False} | architecture))
    write_weights(tmp_path, random_weights(shape, dtype))
    return tmp_path, taking_adapters(tiny_manifest(shape, dtype), tmp_path)


def noise(*shape: int, seed: int = 0) -> Array:
    array: Array = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return array


def pair(module: str, out_size: int, in_size: int, rank: int = 4, seed: int = 0) -> dict[str, Array]:
    """A LoRA on one linear module, as PEFT names it."""
    return {
        f"{PREFIX}{module}.lora_A.weight": noise(rank, in_size, seed=seed),
        f"{PREFIX}{module}.lora_B.weight": noise(out_size, rank, seed=seed + 1),
    }


def saved(directory: Path, arrays: Mapping[str, Array], **keys: Any) -> Path:
    """A PEFT directory."""
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | keys))
    write_safetensors(directory / "adapter_model.safetensors", arrays, {"format": "pt"})
    return directory


def delta(arrays: Mapping[str, Array], module: str, scaling: float = 2.0) -> Array:
    """B A of a module, scaled."""
    a, b = (arrays[f"{PREFIX}{module}.lora_{part}.weight"] for part in "AB")
    return scaling * b @ a


def packed_delta(tensors: AdapterTensors, stem: str) -> Array:
    """b a of a piece."""
    a, b = (to_floats(tensors.arrays[f"{stem}.{part}"]) for part in "ab")
    return b @ a


def test_a_module_becomes_a_piece_with_its_scaling_in_b(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    arrays = pair(Q0, 32, 32) | pair("model.layers.1.mlp.down_proj", 32, 48) | pair("lm_head", 50, 32)
    tensors = read_adapter(saved(tmp_path / "french", arrays), engine, manifest)

    check_adapter(tensors, manifest)
    assert tensors.arrays.keys() == {
        f"{stem}.{part}" for stem in ("layers.0.q", "layers.1.down", "lm_head") for part in "ab"
    }
    assert np.array_equal(tensors.arrays["layers.0.q.a"], arrays[f"{PREFIX}{Q0}.lora_A.weight"])
    assert np.array_equal(tensors.arrays["layers.0.q.b"], 2 * arrays[f"{PREFIX}{Q0}.lora_B.weight"])
    assert tensors.manifest.rank == 4
    assert tensors.manifest.pieces == ("q", "down", "lm_head")
    assert tensors.manifest.source == "french"
    assert not tensors.manifest.is_dora
    assert tensors.manifest.digest == digest_of(tensors.arrays)


def test_patterns_give_modules_ranks_and_scalings_of_their_own(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    other = "model.layers.1.self_attn.k_proj"
    arrays = pair(Q0, 32, 32) | pair(other, 16, 32, rank=2)
    keys = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn\.k_proj": 10}}

    plain = read_adapter(saved(tmp_path / "a", arrays, **keys), engine, manifest)
    rooted = read_adapter(saved(tmp_path / "b", arrays, use_rslora=True, **keys), engine, manifest)

    assert plain.manifest.rank == 4
    for tensors, scalings in ((plain, (2.0, 5.0)), (rooted, (8 / 2, 10 / 2**0.5))):
        for stem, module, scaling in zip(("layers.0.q", "layers.1.k"), (Q0, other), scalings, strict=True):
            assert np.allclose(packed_delta(tensors, stem), delta(arrays, module, scaling), atol=1e-5)


def test_a_stacked_module_becomes_pieces_that_share_a(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path, family="Phi3ForCausalLM")
    qkv, gate_up = "model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj"
    arrays = pair(qkv, 64, 32) | pair(gate_up, 96, 32)
    tensors = read_adapter(saved(tmp_path / "x", arrays), engine, manifest)

    check_adapter(tensors, manifest)
    assert tensors.manifest.pieces == ("q", "k", "v", "gate", "up")
    for module, pieces in ((qkv, "q k v"), (gate_up, "gate up")):
        stems = [f"layers.0.{piece}" for piece in pieces.split()]
        assert np.allclose(
            np.concatenate([packed_delta(tensors, stem) for stem in stems]), delta(arrays, module), atol=1e-5
        )
        assert len({id(tensors.arrays[f"{stem}.a"]) for stem in stems}) == 1


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix(PREFIX),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".my-adapter_2.weight"),
    ],
)
def test_other_spellings_of_the_same_names(tmp_path: Path, rename: Callable[[str], str]) -> None:
    engine, manifest = engine_of(tmp_path)
    arrays = pair(Q0, 32, 32)
    plain = read_adapter(saved(tmp_path / "x", arrays), engine, manifest)
    other = read_adapter(saved(tmp_path / "x", {rename(name): one for name, one in arrays.items()}), engine, manifest)
    assert other.manifest == plain.manifest


def test_multimodal_names_are_brought_into_the_common_form(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path, family="Gemma3ForConditionalGeneration")
    arrays = pair(Q0, 32, 32)
    plain = read_adapter(saved(tmp_path / "x", arrays), engine, manifest)
    for spelling in ("model.language_model.", "language_model.model."):
        renamed = {name.replace("model.layers", f"{spelling}layers", 1): one for name, one in arrays.items()}
        assert read_adapter(saved(tmp_path / "x", renamed), engine, manifest).manifest == plain.manifest


def test_embeddings_are_looked_up(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    a, b = noise(4, 50), noise(32, 4, seed=1)
    names = {f"{PREFIX}model.embed_tokens.lora_embedding_{part}": one for part, one in (("A", a), ("B", b))}
    # PEFT saves the frozen table along.
    names[f"{PREFIX}model.embed_tokens.base_layer.weight"] = noise(50, 32)
    tensors = read_adapter(saved(tmp_path / "x", names), engine, manifest)

    check_adapter(tensors, manifest)
    assert tensors.arrays.keys() == {"embed.a", "embed.b"}
    for token in (0, 17, 49):
        row = tensors.arrays["embed.b"] @ tensors.arrays["embed.a"][token]
        assert np.allclose(row, 2 * b @ a[:, token], atol=1e-5)


@pytest.mark.parametrize("middle", ["", ".modules_to_save", ".modules_to_save.default"])
def test_whole_matrices(tmp_path: Path, middle: str) -> None:
    engine, manifest = engine_of(tmp_path)
    embed, lm_head = noise(50, 32), noise(50, 32, seed=1)
    arrays = {f"{PREFIX}model.embed_tokens{middle}.weight": embed, f"{PREFIX}lm_head{middle}.weight": lm_head}
    keys = {"modules_to_save": ["embed_tokens", "lm_head"]}
    tensors = read_adapter(saved(tmp_path / "x", arrays, **keys), engine, manifest)

    check_adapter(tensors, manifest)
    assert np.array_equal(tensors.arrays["embed.weight"], embed)
    assert np.array_equal(tensors.arrays["lm_head.weight"], lm_head)
    assert (tensors.manifest.rank, tensors.manifest.pieces) == (1, ("lm_head", "embed"))


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", DType)
def test_numbers_are_scaled_in_float32_and_rounded_once_to_the_nearest(
    tmp_path: Path, stored: str, dtype: DType
) -> None:
    engine, manifest = engine_of(tmp_path)
    manifest = manifest.model_copy(update={"dtype": dtype})
    source = getattr(torch, stored)
    weights = {name: torch.from_numpy(one).to(source) for name, one in pair(Q0, 32, 32).items()}
    arrays = {
        name: one.view(torch.uint16).numpy() if stored == "bfloat16" else one.numpy() for name, one in weights.items()
    }
    tensors = read_adapter(saved(tmp_path / "x", arrays, lora_alpha=3), engine, manifest)

    for part, scaling in (("a", 1.0), ("b", 0.75)):
        expected = (scaling * weights[f"{PREFIX}{Q0}.lora_{part.upper()}.weight"].float()).to(
            getattr(torch, dtype.value)
        )
        assert np.array_equal(to_floats(tensors.arrays[f"layers.0.q.{part}"]), expected.float().numpy())


def dora(module: str, out_size: int, in_size: int) -> dict[str, Array]:
    magnitude = {f"{PREFIX}{module}.lora_magnitude_vector.weight": 1 + noise(out_size, seed=9) ** 2}
    return pair(module, out_size, in_size) | magnitude


def recomposed(tensors: AdapterTensors, stem: str, weight: Array) -> Array:
    """gain W + b a."""
    array: Array = tensors.arrays[f"{stem}.gain"][:, None] * weight + packed_delta(tensors, stem)
    return array


def test_the_rows_of_a_dora_have_its_magnitudes(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    weights = random_weights(manifest.architecture)
    modules = {
        Q0: ("layers.0.q", weights["layers.0.qkv.weight"][:32].numpy()),
        "model.layers.1.self_attn.v_proj": ("layers.1.v", weights["layers.1.qkv.weight"][48:].numpy()),
        "model.layers.1.mlp.up_proj": ("layers.1.up", weights["layers.1.gate_up.weight"][48:].numpy()),
        "model.layers.0.mlp.down_proj": ("layers.0.down", weights["layers.0.down.weight"].numpy()),
        "lm_head": ("lm_head", weights["lm_head.weight"].numpy()),
    }
    arrays: dict[str, Array] = {}
    for module, (_, weight) in modules.items():
        arrays |= dora(module, *weight.shape)
    tensors = read_adapter(saved(tmp_path / "x", arrays, use_dora=True), engine, manifest)

    check_adapter(tensors, manifest)
    assert tensors.manifest.is_dora
    for module, (stem, weight) in modules.items():
        direction = weight + delta(arrays, module)
        magnitude = arrays[f"{PREFIX}{module}.lora_magnitude_vector.weight"]
        expected = magnitude[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        assert np.allclose(recomposed(tensors, stem, weight), expected, atol=1e-5)


def test_a_dora_of_tied_logits_is_of_the_embeddings(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path, tie_embeddings=True)
    arrays = dora("lm_head", 50, 32)
    tensors = read_adapter(saved(tmp_path / "x", arrays, use_dora=True), engine, manifest)
    weight = random_weights(manifest.architecture)["embed.weight"].numpy()
    norms = np.linalg.norm(recomposed(tensors, "lm_head", weight), axis=1)
    assert np.allclose(norms, arrays[f"{PREFIX}lm_head.lora_magnitude_vector.weight"], rtol=1e-5)


def test_a_dora_of_embeddings_is_a_whole_table(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    a, b, magnitude = noise(4, 50), noise(32, 4, seed=1), 1 + noise(32, seed=2) ** 2
    stem = f"{PREFIX}model.embed_tokens.lora_"
    arrays = {f"{stem}embedding_A": a, f"{stem}embedding_B": b, f"{stem}magnitude_vector.weight": magnitude}
    tensors = read_adapter(saved(tmp_path / "x", arrays, use_dora=True), engine, manifest)

    check_adapter(tensors, manifest)
    table = random_weights(manifest.architecture)["embed.weight"].numpy() + (2 * b @ a).T
    assert np.allclose(tensors.arrays["embed.weight"], table * magnitude / np.linalg.norm(table, axis=0), atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_dora_on_codes_is_of_what_they_stand_for(tmp_path: Path, bits: int) -> None:
    engine, manifest = engine_of(tmp_path)
    weights = random_weights(manifest.architecture)
    del weights["layers.0.o.weight"]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (32, 32), generator=generator)
    scales, offsets = torch.rand(32, 1, generator=generator).half(), torch.randn(32, 1, generator=generator).half()
    weights["layers.0.o.scales"] = scales
    if bits == 4:
        weights |= {"layers.0.o.codes": pack_nibbles(codes.to(torch.uint8)), "layers.0.o.offsets": offsets}
    else:
        weights["layers.0.o.codes"] = (codes - 8).to(torch.int8)
    write_weights(engine, weights)
    quantized = taking_adapters(manifest, engine)
    quantized = quantized.model_copy(update={"quantization": Quantization(weights=WeightType.SOURCE)})
    module = "model.layers.0.self_attn.o_proj"
    arrays = dora(module, 32, 32)
    tensors = read_adapter(saved(tmp_path / "x", arrays, use_dora=True), engine, quantized)

    weight = (codes * scales.float() + offsets.float() if bits == 4 else (codes - 8) * scales.float()).numpy()
    norms = np.linalg.norm(recomposed(tensors, "layers.0.o", weight), axis=1)
    assert np.allclose(norms, arrays[f"{PREFIX}{module}.lora_magnitude_vector.weight"], rtol=1e-4)


MOE = Moe(num_experts=3, experts_per_token=2, intermediate_size=4, normalize_top_k=True)
REFUSED: dict[str, tuple[dict[str, Array], dict[str, Any], str]] = {
    "another base": (
        pair(Q0, 64, 32),
        {},
        r"q_proj\.lora_B\.weight has shape \(64, 4\), .*wants \(32, 4\).*another base",
    ),
    "another width": (pair(Q0, 32, 40), {}, r"q_proj\.lora_A\.weight has shape \(4, 40\), .*wants \(4, 32\)"),
    "more layers": (pair("model.layers.7.mlp.up_proj", 48, 32), {}, r"layers\.7\..*the model has 2 layers"),
    "expert": (pair("model.layers.1.mlp.experts.0.up_proj", 4, 32), {}, "experts and routers are not adapted"),
    "router": (pair("model.layers.1.mlp.gate", 4, 32), {}, "experts and routers are not adapted"),
    "stacked elsewhere": (
        pair("model.layers.0.self_attn.qkv_proj", 64, 32),
        {},
        "is of nothing that can be adapted here",
    ),
    "bias of B": (pair(Q0, 32, 32) | {f"{PREFIX}{Q0}.lora_B.bias": noise(32)}, {}, r"lora_B\.bias is of nothing"),
    "bias": (pair(Q0, 32, 32) | {f"{PREFIX}{Q0}.bias": noise(32)}, {}, r"q_proj\.bias is of nothing"),
    "norm": ({f"{PREFIX}model.norm.weight": noise(32)}, {}, r"model\.norm\.weight is of nothing"),
    "whole q": ({f"{PREFIX}{Q0}.weight": noise(32, 32)}, {}, r"q_proj has .*it takes lora_a and lora_b"),
    "no b": (dict([next(iter(pair(Q0, 32, 32).items()))]), {}, r"it takes lora_a and lora_b, no more and no less"),
    "whole and low": (
        pair("lm_head", 50, 32) | {f"{PREFIX}lm_head.weight": noise(50, 32)},
        {},
        r"lm_head has .*it takes lora_a and lora_b",
    ),
    "magnitude": (dora(Q0, 32, 32), {}, "with use_dora False it takes lora_a and lora_b"),
    "no magnitude": (
        pair(Q0, 32, 32),
        {"use_dora": True},
        "with use_dora True it takes lora_a and lora_b and lora_magn",
    ),
    "rank": (pair(Q0, 32, 32, rank=3), {}, r"lora_A\.weight has shape \(3, 32\), and its configuration says rank 4"),
    "large rank": (pair(Q0, 32, 32, rank=65), {"r": 65}, r"rank 65, lora\.max_rank is 64; .*--max-lora-rank 65"),
    "vector": ({**pair(Q0, 32, 32), f"{PREFIX}{Q0}.lora_A.weight": noise(4)}, {}, r"has shape \(4,\), and its conf"),
    "vocabulary": (
        {f"{PREFIX}lm_head.weight": noise(51, 32)},
        {},
        r"lm_head\.weight has shape \(51, 32\), .*another voc",
    ),
    "resized": (
        {
            f"{PREFIX}model.embed_tokens.lora_embedding_A": noise(4, 50),
            f"{PREFIX}model.embed_tokens.lora_embedding_B": noise(32, 4),
            f"{PREFIX}model.embed_tokens.base_layer.weight": noise(53, 32),
        },
        {},
        r"base_layer\.weight has shape \(53, 32\).*another voc",
    ),
    "twice": (
        pair(Q0, 32, 32) | {f"{PREFIX}{Q0}.lora_A.other.weight": noise(4, 32)},
        {},
        "are the same tensor twice; save one adapter alone",
    ),
    "NaN": ({**pair(Q0, 32, 32), f"{PREFIX}{Q0}.lora_A.weight": noise(4, 32) * np.nan}, {}, "lora_A.weight holds NaN"),
    "infinite": (
        {**pair(Q0, 32, 32), f"{PREFIX}{Q0}.lora_B.weight": np.full((32, 4), -np.inf, np.float32)},
        {},
        "lora_B.weight holds NaN or inf",
    ),
    "overflow": (
        {**pair(Q0, 32, 32), f"{PREFIX}{Q0}.lora_B.weight": np.full((32, 4), 3e38, np.float32)},
        {},
        r"lora_B\.weight holds NaN or infinity scaled",
    ),
    "empty": ({}, {}, "has no tensor; train it"),
    "no LoRA": ({}, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
}


@pytest.mark.parametrize("arrays, keys, message", REFUSED.values(), ids=REFUSED)
def test_what_the_engine_cannot_do_is_refused_by_name(
    tmp_path: Path, arrays: dict[str, Array], keys: dict[str, Any], message: str
) -> None:
    engine, manifest = engine_of(tmp_path, moe=MOE, layers=(Layer(), Layer(is_moe=True)))
    with pytest.raises(AdapterError, match=message):
        read_adapter(saved(tmp_path / "x", arrays, **keys), engine, manifest)


def test_zero_rows_have_no_direction(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    weights = random_weights(manifest.architecture)
    weights["layers.0.qkv.weight"][3] = 0
    write_weights(engine, weights)
    arrays = dora(Q0, 32, 32)
    arrays[f"{PREFIX}{Q0}.lora_B.weight"][3] = 0
    with pytest.raises(AdapterError, match=r"lora_magnitude_vector\.weight holds NaN or infinity divided by the norms"):
        read_adapter(saved(tmp_path / "x", arrays, use_dora=True), engine, taking_adapters(manifest, engine))


def test_too_large_for_float16(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    arrays = {**pair(Q0, 32, 32), f"{PREFIX}{Q0}.lora_B.weight": np.full((32, 4), 6e4, np.float32)}
    with pytest.raises(AdapterError, match=r"lora_B\.weight holds .* rounded to the engine's float16"):
        read_adapter(saved(tmp_path / "x", arrays), engine, manifest.model_copy(update={"dtype": DType.FLOAT16}))


def test_tying_that_the_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    arrays = {f"{PREFIX}model.embed_tokens.weight": noise(50, 32)}
    directory = saved(tmp_path / "x", arrays, ensure_weight_tying=True, modules_to_save=["embed_tokens"])
    read_adapter(directory, *engine_of(tmp_path))
    with pytest.raises(AdapterError, match="ensure_weight_tying is true"):
        read_adapter(directory, *engine_of(tmp_path, tie_embeddings=True))


def test_an_engine_that_takes_none(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    with pytest.raises(AdapterError, match="lora is null"):
        read_adapter(saved(tmp_path / "x", pair(Q0, 32, 32)), engine, manifest.model_copy(update={"lora": None}))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    directory = saved(tmp_path / "x", pair(Q0, 32, 32))
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors"):
        AdapterSource.open(directory, engine, manifest)
    (directory / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(AdapterError, match=r"pickles are never opened.*save it as safetensors"):
        AdapterSource.open(directory, engine, manifest)


@pytest.mark.parametrize("content", [None, b"{", b" " * (2 << 20)])
def test_a_configuration_that_is_missing_or_none(tmp_path: Path, content: bytes | None) -> None:
    engine, manifest = engine_of(tmp_path)
    directory = saved(tmp_path / "x", pair(Q0, 32, 32))
    path = directory / "adapter_config.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        AdapterSource.open(directory, engine, manifest)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_never_makes_us_wait(tmp_path: Path, name: str) -> None:
    engine, manifest = engine_of(tmp_path)
    directory = saved(tmp_path / "x", pair(Q0, 32, 32))
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(AdapterError, match="not a regular file"):
        AdapterSource.open(directory, engine, manifest)


def test_a_source_is_the_version_that_was_opened(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    directory = saved(tmp_path / "x", pair(Q0, 32, 32))
    expected = read_adapter(directory, engine, manifest)
    with AdapterSource.open(directory, engine, manifest) as source:
        saved(directory, pair(Q0, 32, 32, seed=5), lora_alpha=3)
        with AdapterSource.open(directory, engine, manifest) as later:
            assert later.manifest.digest != source.manifest.digest
        directory.rename(tmp_path / "elsewhere")
        tensors = source.read()
    assert (
        tensors.manifest == source.manifest == expected.manifest.model_copy(update={"digest": source.manifest.digest})
    )
    assert digest_of(tensors.arrays) == expected.manifest.digest


def test_a_source_whose_file_is_altered_meanwhile_is_found_out(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    directory = saved(tmp_path / "x", pair(Q0, 32, 32))
    path = directory / "adapter_model.safetensors"
    with AdapterSource.open(directory, engine, manifest) as source:
        with path.open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\0\0")
        with pytest.raises(AdapterError, match="altered"):
            source.read()
        os.truncate(path, 100)
        with pytest.raises(AdapterError, match="cut short"):
            source.read()


def test_descriptors_go_back(tmp_path: Path) -> None:
    engine, manifest = engine_of(tmp_path)
    good = saved(tmp_path / "good", pair(Q0, 32, 32))
    bad = saved(tmp_path / "bad", pair(Q0, 32, 33))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        AdapterSource.open(good, engine, manifest).close()
        with pytest.raises(AdapterError):
            AdapterSource.open(bad, engine, manifest)
    assert len(os.listdir("/proc/self/fd")) == before
