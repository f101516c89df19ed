"""What cannot draft for a model is refused with the reason, before anything is written."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import random_checkpoint
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import CheckpointError, ConfigError, EngineError
from trierarch.builder.manifest import DType

PROMPT = list(range(3, 43))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `target`, and `small`, of the same tokenizer and another family."""
    directory = tmp_path_factory.mktemp("checkpoints")
    random_checkpoint("llama", directory / "target")
    random_checkpoint("qwen3", directory / "small", num_hidden_layers=1, seed=1)
    return directory


def config_of(checkpoints: Path, output: Path, draft: str | Path, **options: Any) -> BuildConfig:
    chosen = {"dtype": DType.FLOAT32, "compile": False, "max_seq_len": 200} | options
    return BuildConfig.model_validate(
        {"model": str(checkpoints / "target"), "output": output, "draft": str(draft), **chosen}
    )


def change_token(checkpoint: Path, target: Path) -> Path:
    """A copy of a checkpoint in which two tokens have changed places."""
    shutil.copytree(checkpoint, target)
    path = target / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    names = {index: token for token, index in vocabulary.items()}
    vocabulary[names[70]], vocabulary[names[71]] = 71, 70
    path.write_text(json.dumps(document), encoding="utf-8")
    return target


def test_another_vocabulary_of_the_same_size_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    other = change_token(checkpoints / "small", tmp_path / "other")
    build(BuildConfig(model=str(other), output=tmp_path / "built", compile=False))
    for draft in (other, tmp_path / "built"):
        with pytest.raises(
            ConfigError, match=r"draft is '.*': its vocabulary is another: token 70 is '.' there and '.'"
        ):
            build(config_of(checkpoints, tmp_path / "engine", draft))
    assert not (tmp_path / "engine").exists()


def test_a_shorter_window_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    short = random_checkpoint("qwen3", tmp_path / "short", max_position_embeddings=128)
    config = BuildConfig(model=str(checkpoints / "small"), output=tmp_path / "built", compile=False, max_seq_len=128)
    build(config)
    for draft in (short, tmp_path / "built"):
        with pytest.raises(
            ConfigError,
            match=r"draft is '.*': its window is 128 tokens and max_seq_len is 200, .* with --max-seq-len 128",
        ):
            build(config_of(checkpoints, tmp_path / "engine", draft))
        assert build(config_of(checkpoints, tmp_path / "engine", draft, max_seq_len=128, overwrite=True)).speculation


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_draft_of_itself_is_more_quantised(quantization: str, checkpoints: Path, tmp_path: Path) -> None:
    options = {"quantization": quantization, "accuracy_check": False}
    with pytest.raises(
        ConfigError, match=r"draft is 'int8': the model itself takes \d+ bytes and so quantised \d+, .*"
    ):
        build(config_of(checkpoints, tmp_path / "engine", "int8", **options))
    assert not (tmp_path / "engine").exists()


def test_a_larger_draft_is_warned_of(checkpoints: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    large = random_checkpoint("llama", tmp_path / "large", num_hidden_layers=5)
    with caplog.at_level(logging.WARNING):
        build(config_of(checkpoints, tmp_path / "quiet", checkpoints / "small"))
        assert not caplog.records
        build(config_of(checkpoints, tmp_path / "engine", large))
    assert "guessing takes longer than computing; take a smaller draft" in caplog.text


def test_what_cannot_be_a_draft_is_named(checkpoints: Path, tmp_path: Path) -> None:
    ragged = random_checkpoint("llama", tmp_path / "ragged", intermediate_size=48)
    build(config_of(checkpoints, tmp_path / "sound", "int4"))
    build(
        config_of(
            checkpoints,
            tmp_path / "narrow",
            "int4",
            model=str(random_checkpoint("llama", tmp_path / "n", vocab_size=300)),
        )
    )
    engine = str(tmp_path / "sound")
    for draft, options, error, message in (
        ("/no/such/place", {}, ConfigError, r"draft is '/no/such/place': no such directory or file; give"),
        (
            ragged,
            {"draft_quantization": "int4"},
            ConfigError,
            r"draft is '.*ragged': quantization is 'int4': .* 48 inp",
        ),
        (checkpoints / "small", {"draft_quantization": "source"}, ConfigError, r"draft is '.*': quantization is 'sour"),
        (f"{engine}/draft", {}, EngineError, r"draft is '.*': it has no tokenizer.json .* another engine's draft"),
        (engine, {"draft_quantization": "int4"}, ConfigError, r"but an engine's weights are written already; leave"),
        (
            tmp_path / "narrow",
            {},
            ConfigError,
            r"it was built for 300 token ids, the model has 320; give the checkpoint",
        ),
        ("int4", {"kv_cache_bytes": 13000}, ConfigError, r"one block of this model and its draft takes 24576"),
    ):
        with pytest.raises(error, match=message):
            build(config_of(checkpoints, tmp_path / "engine", draft, **options))
    damaged = shutil.copytree(checkpoints / "small", tmp_path / "damaged")
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"hidden_act": "sine"}))
    with pytest.raises(CheckpointError, match=r"draft is '.*damaged': config.json: hidden_act is 'sine'"):
        build(config_of(checkpoints, tmp_path / "engine", damaged))
    assert not (tmp_path / "engine").exists()


def test_an_altered_engine_is_no_draft(checkpoints: Path, tmp_path: Path) -> None:
    build(BuildConfig(model=str(checkpoints / "small"), output=tmp_path / "small", compile=False))
    path = tmp_path / "small" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(EngineError, match=r"weights.safetensors was altered: its SHA-256 is not the manifest's"):
        build(config_of(checkpoints, tmp_path / "engine", tmp_path / "small"))
