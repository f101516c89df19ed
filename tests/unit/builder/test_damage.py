"""Whatever a checkpoint's files say, the builder builds or raises an error of its own: never a bare traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.checkpoints import random_checkpoint
from support.gguf_files import write_gguf
from trierarch.builder import gguf_checkpoint
from trierarch.builder.decoder import read_decoder
from trierarch.builder.errors import CheckpointError
from trierarch.builder.manifest import DType
from trierarch.builder.progress import NoProgress
from trierarch.builder.source import open_checkpoint
from trierarch.builder.weights import plan_weights

WRONG: tuple[Any, ...] = (
    "text",
    -1,
    0,
    10**30,
    float("inf"),
    1.5,
    None,
    True,
    [1],
    [["a"]],
    {},
    {"a": 1},
    [{"name": 1}],
)
MISSPELT_KEYS = {
    "config.json": ("text_config", "quantization_config", "rope_scaling", "layer_types", "mlp_only_layers"),
    "tokenizer_config.json": ("added_tokens_decoder", "add_bos_token"),
    "generation_config.json": ("eos_token_id",),
}


def refusal(model: Path) -> str | None:
    """What is said of `model` by all that a build does before it writes; None where nothing is wrong."""
    try:
        checkpoint = open_checkpoint(str(model), NoProgress())
        decoder = read_decoder(checkpoint.config, None)
        plan_weights(decoder, checkpoint, DType.FLOAT32)
        checkpoint.tokenizer(decoder.architecture.vocab_size)
    except CheckpointError as error:
        return str(error)
    return None


def reads(model: Path) -> bool:
    message = refusal(model)
    assert message is None or "\n" not in message
    return message is None


def variants(raw: dict[str, Any], more: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    for key in (*raw, *more):
        yield from ({**raw, key: wrong} for wrong in WRONG)


@pytest.mark.parametrize("file", MISSPELT_KEYS)
@pytest.mark.parametrize("family", ["gemma3", "qwen3-moe"])
def test_wrong_values_in_json_are_refused_by_name(family: str, file: str, tmp_path: Path) -> None:
    directory = random_checkpoint(family, tmp_path / "hf")
    path = directory / file
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert reads(directory)
    for variant in variants(raw, MISSPELT_KEYS[file]):
        path.write_text(json.dumps(variant), encoding="utf-8")
        reads(directory)


@pytest.mark.parametrize("family", ["llama-yarn", "phi3-longrope"])
def test_wrong_rope_parameters_are_refused_by_name(family: str, tmp_path: Path) -> None:
    directory = random_checkpoint(family, tmp_path / "hf")
    path = directory / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    for variant in variants(raw["rope_parameters"], ("beta_fast", "mscale", "attention_factor")):
        path.write_text(json.dumps({**raw, "rope_parameters": variant}), encoding="utf-8")
        reads(directory)


@pytest.mark.parametrize("family", ["gemma3", "llama-yarn", "mixtral"])
def test_wrong_gguf_metadata_is_refused_by_name(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(random_checkpoint(family, tmp_path / "hf"), tmp_path / "model.gguf")
    reader, metadata = gguf_checkpoint._open(path)
    assert reads(path)
    for variant in variants(metadata, ("split.count", "llama.rope.scaling.attn_factor", "tokenizer.ggml.scores")):
        monkeypatch.setattr(gguf_checkpoint, "_open", lambda _, variant=variant: (reader, variant))
        reads(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_in_a_gguf_header_are_refused(whole_gguf: bytes, tmp_path: Path, flips: Any) -> None:
    damaged = bytearray(whole_gguf)
    for position, value in flips:
        damaged[position] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    reads(path)


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("whole")
    return write_gguf(random_checkpoint("qwen3", directory / "hf"), directory / "model.gguf").read_bytes()
