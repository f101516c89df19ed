"""Engines with quantised weights: what is kept, what is rounded, what is refused, and what comes out of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.checkpoints import random_checkpoint
from support.forward import prompt_logits
from support.gguf_files import write_gguf
from trierarch.builder import weights_file
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.engine_matrices import EngineMatrices, e4m3_to_floats
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.gguf_checkpoint import GgufCheckpoint
from trierarch.builder.gguf_codes import CODE_BITS
from trierarch.builder.manifest import WEIGHTS_NAME, DType, EngineManifest, Quantization, WeightType
from trierarch.builder.verify import verify
from trierarch.orchestrator.engine_summary import summary_rows
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.torch.weights import Weights, load_weights

CPU = torch.device("cpu")
LAYER_MATRICES = ("qkv", "o", "gate_up", "down")


def build_engine(model: Path, output: Path, quantization: str | None, **options: Any) -> tuple[EngineManifest, Weights]:
    options = {"dtype": DType.FLOAT32, "compile": False, "accuracy_check": False} | options
    config = BuildConfig.model_validate({"model": str(model), "output": output, "quantization": quantization} | options)
    manifest = build(config)
    assert verify(output, digests=True) == manifest
    return manifest, load_weights(output, manifest, CPU)


def bits_of(weights: Weights) -> dict[str, int]:
    return {name: one.bits for name, one in weights.items() if isinstance(one, QuantizedMatrix)}


def plain(weight: Matrix) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.dequantize(torch.float32)


def prompt(length: int = 40) -> list[int]:
    return torch.randint(320, (length,), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.mark.parametrize("family", ["llama", "llama-bias", "qwen3-moe"])
@pytest.mark.parametrize("asked", ["int8", "int4"])
def test_every_matrix_is_quantised_and_the_logits_to_int8(family: str, asked: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(family, tmp_path / "hf")
    manifest, weights = build_engine(checkpoint, tmp_path / "engine", asked)
    exact = build_engine(checkpoint, tmp_path / "exact", None)[1]
    logits = "embed" if manifest.architecture.tie_embeddings else "lm_head"
    expected = {f"{logits}.weight": 8}
    for index, layer in enumerate(manifest.architecture.layers):
        names = ("qkv", "o", "experts.gate_up", "experts.down") if layer.is_moe else LAYER_MATRICES
        expected |= {f"layers.{index}.{name}.weight": 8 if asked == "int8" else 4 for name in names}
    assert bits_of(weights) == expected
    assert manifest.quantization == Quantization(
        weights=WeightType(asked),
        num_int8=list(expected.values()).count(8),
        num_int4=list(expected.values()).count(4),
        num_unquantized=0,
    )
    for name, weight in weights.items():
        assert weight.shape == exact[name].shape
        error = (plain(weight) - plain(exact[name])).norm() / plain(exact[name]).norm()
        assert error < {8: 0.01, 4: 0.1, None: 1e-9}[expected.get(name)], name


@pytest.mark.parametrize("family", ["llama", "llama-bias", "qwen3-moe"])
def test_fp8_leaves_the_logits_matrix_as_it_is(family: str, tmp_path: Path) -> None:
    """Also where inputs do not come in groups: a row has one scale."""
    checkpoint = random_checkpoint(family, tmp_path / "hf", intermediate_size=48)
    manifest, weights = build_engine(checkpoint, tmp_path / "engine", "fp8")
    exact = build_engine(checkpoint, tmp_path / "exact", None)[1]
    matrices = [name for name in weights if manifest.architecture.may_quantize(name)]
    logits = "embed.weight" if manifest.architecture.tie_embeddings else "lm_head.weight"
    assert {name for name, one in weights.items() if isinstance(one, Fp8Matrix)} == {*matrices} - {logits}
    assert manifest.quantization == Quantization(weights=WeightType.FP8, num_fp8=len(matrices) - 1, num_unquantized=1)
    for name, weight in weights.items():
        assert weight.shape == exact[name].shape
        error = (plain(weight) - plain(exact[name])).norm() / plain(exact[name]).norm()
        assert error < (0.04 if isinstance(weight, Fp8Matrix) else 1e-9), name
    rows = dict(summary_rows(manifest))
    assert rows["weights"].startswith(f"fp8, a scale a row ({len(matrices)} matrices: ")
    tensors = load_file(tmp_path / "engine" / WEIGHTS_NAME)
    (_, numbers), *_ = EngineMatrices(tmp_path / "engine", manifest).chunks("layers.1.o", "o")
    codes, scales = tensors["layers.1.o.codes"], tensors["layers.1.o.scales"]
    assert torch.from_numpy(numbers).equal(codes.float() * scales[:, None])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "mixtral"])
def test_int8_logits_are_close_to_the_unquantised(family: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(family, tmp_path / "hf")
    build_engine(checkpoint, tmp_path / "int8", "int8")
    build_engine(checkpoint, tmp_path / "exact", None)
    logits, exact = (prompt_logits(tmp_path / name, prompt(), [31, 1, 8]) for name in ("int8", "exact"))
    errors = (logits - exact).norm(dim=1) / exact.norm(dim=1)
    assert errors.median() < 0.03
    assert errors.median() > 1e-4  # it did go through codes
    assert exact.std(dim=1).min() > 0.1


@pytest.mark.parametrize("tensor_type", CODE_BITS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "mixtral"])
def test_a_gguf_is_kept_to_the_bit(tensor_type: str, family: str, tmp_path: Path) -> None:
    """Rows in pairs (llama), tied and not, q, k and v in one, and experts: the codes mean what `load` would give."""
    path = write_gguf(random_checkpoint(family, tmp_path / "hf"), tmp_path / "model.gguf", tensor_type)
    bits = CODE_BITS[tensor_type]
    manifest, weights = build_engine(path, tmp_path / "engine", "source")
    exact = build_engine(path, tmp_path / "exact", None)[1]
    assert manifest.source_quantization == tensor_type
    assert set(bits_of(weights).values()) == {bits}
    assert bits_of(weights).keys() == {name for name in weights if manifest.architecture.may_quantize(name)}
    for name, weight in weights.items():
        assert plain(weight).equal(plain(exact[name])), name


@pytest.mark.parametrize("tensor_type", CODE_BITS)
def test_codes_of_the_asked_bits_are_not_rounded_again(tensor_type: str, tmp_path: Path) -> None:
    path = write_gguf(random_checkpoint("llama", tmp_path / "hf"), tmp_path / "model.gguf", tensor_type)
    bits = CODE_BITS[tensor_type]
    _, source = build_engine(path, tmp_path / "source", "source")
    manifest, weights = build_engine(path, tmp_path / "engine", f"int{bits}")
    for name, weight in weights.items():
        if name != "lm_head.weight" or bits == 8:
            assert plain(weight).equal(plain(source[name])), name
    assert bits_of(weights)["lm_head.weight"] == 8
    assert manifest.quantization is not None
    assert manifest.quantization.num_int8 == (13 if bits == 8 else 1)
    other, weights = build_engine(path, tmp_path / "other", f"int{12 - bits}")
    assert bits_of(weights)["layers.0.o.weight"] == 12 - bits
    assert other.source_quantization == tensor_type


def test_codes_are_read_as_the_package_writes_them(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("qwen3", tmp_path / "hf")
    original = load_file(checkpoint / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].numpy()
    for tensor_type, bits in CODE_BITS.items():
        path = write_gguf(checkpoint, tmp_path / f"{tensor_type}.gguf", tensor_type)
        quant = gguf.GGMLQuantizationType[tensor_type]
        _, weights = build_engine(path, tmp_path / tensor_type, "source")
        matrix = weights["layers.1.down.weight"]
        assert isinstance(matrix, QuantizedMatrix)
        assert matrix.bits == bits
        expected = gguf.quants.dequantize(gguf.quants.quantize(original, quant), quant)
        np.testing.assert_array_equal(matrix.dequantize(torch.float32).numpy(), expected)


def mixed_gguf(directory: Path, types: dict[str, str]) -> Path:
    """A Q8_0 GGUF in which some tensors, by the end of their name, are of other types."""
    paths = {
        one: write_gguf(random_checkpoint("llama", directory / "hf"), directory / f"{one}.gguf", one)
        for one in {"Q8_0", *types.values()}
    }
    readers = {one: gguf.GGUFReader(path) for one, path in paths.items()}
    writer = gguf.GGUFWriter(directory / "mixed.gguf", "llama")
    for key, field in readers["Q8_0"].fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            main = field.types[0]
            sub = field.types[-1] if main is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), main, sub_type=sub)
    for index, tensor in enumerate(readers["Q8_0"].tensors):
        chosen = next((one for end, one in types.items() if tensor.name.endswith(end)), "Q8_0")
        stored = readers[chosen].tensors[index]
        writer.add_tensor(stored.name, np.array(stored.data), raw_dtype=stored.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory / "mixed.gguf"


def test_source_keeps_what_has_one_kind_of_codes_and_leaves_the_rest(tmp_path: Path) -> None:
    types = {"attn_k.weight": "Q4_1", "ffn_gate.weight": "Q4_0", "ffn_up.weight": "Q4_1", "ffn_down.weight": "Q5_0"}
    path = mixed_gguf(tmp_path, types)
    manifest, weights = build_engine(path, tmp_path / "engine", "source")
    exact = build_engine(path, tmp_path / "exact", None)[1]
    kept = {"o": 8, "gate_up": 4}  # qkv mixes bits, down is of a type that is not kept
    expected = {f"layers.{index}.{name}.weight": bits for index in range(3) for name, bits in kept.items()}
    assert bits_of(weights) == expected | {"lm_head.weight": 8}
    assert manifest.quantization == Quantization(weights=WeightType.SOURCE, num_int8=4, num_int4=3, num_unquantized=6)
    assert all(plain(weight).equal(plain(exact[name])) for name, weight in weights.items())
    rows = dict(summary_rows(manifest))
    assert rows["weights"] == "as in the checkpoint, in groups of 32 (13 matrices: 4 int8, 3 int4, 6 unquantised)"


def test_source_needs_codes(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "hf")
    for model in (checkpoint, write_gguf(checkpoint, tmp_path / "model.gguf", "Q5_0")):
        with pytest.raises(
            ConfigError, match=r"quantization is 'source': the checkpoint has no matrix in Q8_0, .*ask for"
        ):
            build_engine(model, tmp_path / "engine", "source")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("asked", ["int8", "int4"])
def test_a_shape_that_does_not_divide_is_named(asked: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "hf", intermediate_size=48)
    message = rf"quantization is '{asked}': model.layers.0.mlp.down_proj has 48 inputs, not a multiple of 32; leave the model unq"
    with pytest.raises(ConfigError, match=message):
        build_engine(checkpoint, tmp_path / "engine", asked)
    assert not (tmp_path / "engine").exists()


def test_a_damaged_weight_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "hf")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = torch.nan
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.up_proj.weight holds NaN or infinity"):
        build_engine(checkpoint, tmp_path / "engine", "int4")
    assert not (tmp_path / "engine").exists()


def test_a_damaged_scale_is_named(tmp_path: Path) -> None:
    path = write_gguf(random_checkpoint("llama", tmp_path / "hf"), tmp_path / "model.gguf", "Q4_1")
    tensor = next(one for one in gguf.GGUFReader(path, "r+").tensors if one.name == "blk.2.ffn_up.weight")
    tensor.data[3, :2] = (0, 0x7C)  # infinity, little-endian
    with pytest.raises(CheckpointError, match=r"model.layers.2.mlp.up_proj.weight holds a scale that is not finite"):
        GgufCheckpoint(path).load_codes("model.layers.2.mlp.up_proj.weight")


@pytest.mark.parametrize("asked", ["int8", "int4", "fp8", "source"])
def test_two_quantised_builds_are_byte_identical(asked: str, tmp_path: Path) -> None:
    path = write_gguf(random_checkpoint("llama", tmp_path / "hf"), tmp_path / "model.gguf", "Q4_0")
    shutil.copy(path, tmp_path / "hf" / "model.gguf")
    manifests = [
        build_engine(one, tmp_path / str(index), asked)[0]
        for index, one in enumerate((path, tmp_path / "hf" / "model.gguf"))
    ]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("asked", ["int8", "int4", "fp8"])
def test_tensors_lie_aligned_and_those_of_a_matrix_side_by_side(asked: str, tmp_path: Path) -> None:
    """Also with a vocabulary that makes the last matrix ragged."""
    checkpoint = random_checkpoint("llama", tmp_path / "hf", vocab_size=321)
    build_engine(checkpoint, tmp_path / "engine", asked, dtype=DType.BFLOAT16)
    raw = (tmp_path / "engine" / WEIGHTS_NAME).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    assert (8 + length) % weights_file.ALIGNMENT == 0
    item_bytes = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
    names = list(entries)
    for place, name in enumerate(names):
        begin = entries[name]["data_offsets"][0]
        assert begin % item_bytes[entries[name]["dtype"]] == 0
        if "lm_head" not in name and "embed" not in name and "norm" not in name:
            assert begin % weights_file.ALIGNMENT == 0, name
        if name.endswith(".codes"):
            stem = name.removesuffix("codes")
            others = ["scales"] if entries[name]["dtype"] != "U8" else ["scales", "offsets"]
            assert names[place + 1 : place + 1 + len(others)] == [stem + other for other in others]
    with safe_open(str(tmp_path / "engine" / WEIGHTS_NAME), "pt") as file:
        assert {file.get_tensor(name).isnan().any().item() for name in names if "scales" in name} == {False}


def test_an_unquantised_engine_says_nothing_of_it(tmp_path: Path) -> None:
    manifest, weights = build_engine(random_checkpoint("llama", tmp_path / "hf"), tmp_path / "engine", None)
    assert manifest.quantization is None
    assert bits_of(weights) == {}
    assert "weights" not in dict(summary_rows(manifest))


def test_every_byte_of_e4m3_is_the_number_that_torch_takes_it_for() -> None:
    numbers = torch.arange(256, dtype=torch.uint8)
    expected = numbers.view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(
        torch.from_numpy(e4m3_to_floats(numbers.numpy())), expected, rtol=0, atol=0, equal_nan=True
    )


def test_fp8_logits_are_close_to_the_unquantised(tmp_path: Path) -> None:
    """Weights, keys and values."""
    checkpoint = random_checkpoint("llama", tmp_path / "hf")
    build_engine(checkpoint, tmp_path / "fp8", "fp8", kv_cache_dtype="fp8")
    build_engine(checkpoint, tmp_path / "exact", None)
    logits, exact = (prompt_logits(tmp_path / name, prompt(), [31, 1, 8]) for name in ("fp8", "exact"))
    errors = (logits - exact).norm(dim=1) / exact.norm(dim=1)
    assert 1e-3 < errors.median() < 0.1
