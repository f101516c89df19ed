"""A draft engine is built inside its engine: of the same ids, as long, and whole with it or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import VOCAB_SIZE, random_checkpoint
from support.forward import prompt_logits
from support.gguf_files import byte_level_keys, write_gguf
from trierarch.builder.build import build
from trierarch.builder.compile import find_compiler
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import DrafterKind, DType, EngineManifest, KvType
from trierarch.builder.verify import verify
from trierarch.orchestrator.engine_summary import summary_rows

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


def draft_of(engine: Path) -> EngineManifest:
    """Of a sound engine, whose every file the manifest digests."""
    manifest = verify(engine, digests=True)
    files = {str(path.relative_to(engine)) for path in engine.rglob("*") if path.is_file()}
    assert files == {*manifest.files, "engine.json"}
    draft = manifest.load_draft(engine)
    assert draft is not None
    return draft


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Recorder:
    """Progress that remembers, and may stop the build at a stage."""

    def __init__(self, stop_at: str = "") -> None:
        self.totals: dict[str, int | None] = {}
        self.done: dict[str, int] = {}
        self._stop_at = stop_at

    def stage(self, name: str, total: int | None, unit: str = "bytes") -> None:
        self.totals[name] = total

    def advance(self, amount: int) -> None:
        name = list(self.totals)[-1]
        self.done[name] = self.done.get(name, 0) + amount
        if name == self._stop_at:
            raise KeyboardInterrupt


def test_a_checkpoint_becomes_the_draft(checkpoints: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    manifest = build(config_of(checkpoints, engine, checkpoints / "small", kv_cache_bytes=1 << 20, block_size=8))
    draft = draft_of(engine)
    assert manifest.speculation is not None
    assert manifest.speculation.drafters == (DrafterKind.PROMPT_LOOKUP, DrafterKind.SUFFIX, DrafterKind.DRAFT_MODEL)
    assert manifest.speculation.draft_engine == "draft"
    assert (draft.name, draft.architecture.family) == ("small", "Qwen3ForCausalLM")
    assert draft.limits == manifest.limits
    assert draft.speculation is None
    assert draft.tokens == manifest.tokens
    assert sorted(draft.files) == ["weights.safetensors"]  # the tokenizer is the engine's
    own, drafts = manifest.kv_cache, draft.kv_cache
    assert (own.num_bytes or 0) + (drafts.num_bytes or 0) <= 1 << 20
    assert own.block_size == drafts.block_size == 8
    assert (own.num_bytes or 0) // (8 * own.bytes_per_token) == (drafts.num_bytes or 0) // (8 * drafts.bytes_per_token)
    build(BuildConfig(model=str(checkpoints / "small"), output=tmp_path / "alone", dtype=DType.FLOAT32, compile=False))
    for built in (engine / "draft", tmp_path / "alone"):
        assert torch.equal(prompt_logits(built, PROMPT, [40]), prompt_logits(tmp_path / "alone", PROMPT, [40]))


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_the_draft_has_kernels_of_its_own(checkpoints: Path, tmp_path: Path) -> None:
    manifest = build(config_of(checkpoints, tmp_path / "engine", checkpoints / "small", compile=True))
    draft = draft_of(tmp_path / "engine")
    assert draft.kernels is not None
    assert draft.requires == manifest.requires
    compiled = prompt_logits(tmp_path / "engine" / "draft", PROMPT, [40], is_compiled=True)
    torch.testing.assert_close(compiled, prompt_logits(tmp_path / "engine" / "draft", PROMPT, [40]))


def test_the_model_is_its_own_draft(checkpoints: Path, tmp_path: Path) -> None:
    manifest = build(config_of(checkpoints, tmp_path / "engine", "int4", name="mine", kv_cache_dtype=KvType.FLOAT32))
    draft = draft_of(tmp_path / "engine")
    assert draft.name == "mine-int4"
    assert draft.quantization is not None
    assert draft.quantization.num_int4 == 12
    assert draft.architecture == manifest.architecture
    assert manifest.quantization is None
    assert manifest.kv_cache.memory_fraction == draft.kv_cache.memory_fraction == pytest.approx(0.1)
    exact, guessed = (prompt_logits(tmp_path / "engine" / name, PROMPT, [40]) for name in (".", "draft"))
    assert 0 < (exact - guessed).norm() / exact.norm() < 0.3


def test_a_draft_from_a_checkpoint_may_be_quantised(checkpoints: Path, tmp_path: Path) -> None:
    gguf = write_gguf(checkpoints / "small", tmp_path / "small.gguf", "Q8_0")
    build(config_of(checkpoints, tmp_path / "engine", gguf, draft_quantization="source"))
    draft = draft_of(tmp_path / "engine")
    assert draft.source_quantization == "Q8_0"
    assert draft.quantization is not None
    assert draft.quantization.num_int8 == 5


def test_an_engine_becomes_the_draft(checkpoints: Path, tmp_path: Path) -> None:
    """It brings its own types of weights, keys and values; limits are the new engine's."""
    built = tmp_path / "small"
    options = {"dtype": DType.BFLOAT16, "quantization": "int8", "kv_cache_dtype": "int8", "accuracy_check": False}
    small = config_of(checkpoints, built, "int4", **options, model=str(checkpoints / "small"), block_size=32)
    before = build(small)
    build(config_of(checkpoints, tmp_path / "engine", built, max_seq_len=150))
    draft = draft_of(tmp_path / "engine")
    assert (draft.dtype, draft.kv_cache.dtype, draft.quantization) == (DType.BFLOAT16, KvType.INT8, before.quantization)
    assert (draft.limits.max_seq_len, draft.kv_cache.block_size) == (150, 16)
    assert draft.speculation is None
    assert draft.files == {"weights.safetensors": before.files["weights.safetensors"]}


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE + 37, VOCAB_SIZE - 21])
@pytest.mark.parametrize("quantization", [None, "int8", "int4", "source"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_it_takes_and_guesses_the_ids_of_the_model(
    is_tied: bool, quantization: str | None, vocab_size: int, checkpoints: Path, tmp_path: Path
) -> None:
    """Embeddings that only the draft has are cut; those that it lacks are zeros: ids below either are what they were."""
    hf = random_checkpoint("llama", tmp_path / "hf", vocab_size=vocab_size, tie_word_embeddings=is_tied)
    model = write_gguf(hf, tmp_path / "hf.gguf", "Q4_0", byte_level_keys(VOCAB_SIZE - 21))
    build(config_of(checkpoints, tmp_path / "engine", model, draft_quantization=quantization))
    alone = BuildConfig.model_validate(
        {"model": str(model), "output": tmp_path / "alone", "quantization": quantization, "dtype": DType.FLOAT32}
        | {"accuracy_check": False, "compile": False}
    )
    assert build(alone).architecture.vocab_size == vocab_size
    assert draft_of(tmp_path / "engine").architecture.vocab_size == VOCAB_SIZE
    shared = min(vocab_size, VOCAB_SIZE)
    prompt = [*PROMPT, shared - 1]
    fitted, exact = (prompt_logits(tmp_path / name, prompt, [41]) for name in ("engine/draft", "alone"))
    torch.testing.assert_close(fitted[:, :shared], exact[:, :shared])
    assert not fitted[:, shared:].any()
    assert prompt_logits(tmp_path / "engine/draft", [*PROMPT, VOCAB_SIZE - 1], [41]).isfinite().all()


@pytest.mark.parametrize("draft", ["small", "int8", "engine"])
def test_two_builds_are_byte_identical(draft: str, checkpoints: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(checkpoints, elsewhere)
    for root in (checkpoints, elsewhere):
        if draft == "engine":
            build(BuildConfig(model=str(root / "small"), output=root / "engine", dtype=DType.BFLOAT16))
        source = draft if draft == "int8" else root / draft
        build(config_of(root, tmp_path / ("a" if root is checkpoints else "deep/b"), source, compile=True))
    assert contents(tmp_path / "a") == contents(tmp_path / "deep" / "b")
    assert not any(str(tmp_path).encode() in content for content in contents(tmp_path / "a").values())


def test_the_draft_has_stages_of_its_own(checkpoints: Path, tmp_path: Path) -> None:
    progress = Recorder()
    build(config_of(checkpoints, tmp_path / "engine", checkpoints / "small", compile=True), progress)
    names = ["checkpoint", "draft checkpoint", "kernels", "draft kernels", "weights", "draft weights"]
    assert list(progress.totals) == names
    assert progress.done == {name: progress.totals[name] for name in ("weights", "draft weights")}
    assert progress.done["draft weights"] == draft_of(tmp_path / "engine").files["weights.safetensors"].num_bytes


@pytest.mark.parametrize("stage", ["weights", "draft weights"])
def test_a_build_that_stops_in_the_draft_leaves_nothing(stage: str, checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(config_of(checkpoints, tmp_path / "new" / "engine", "int4"), Recorder(stage))
    assert os.listdir(tmp_path) == []
    config = config_of(checkpoints, tmp_path / "engine", "int4", overwrite=True)
    build(config)
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        build(config.model_copy(update={"block_size": 32}), Recorder(stage))
    assert contents(tmp_path) == before


def test_overwriting_leaves_nothing_of_an_old_draft(checkpoints: Path, tmp_path: Path) -> None:
    config = config_of(checkpoints, tmp_path / "engine", "int4", overwrite=True)
    build(config)
    build(config.model_copy(update={"draft": None}))
    assert verify(tmp_path / "engine", digests=True).load_draft(tmp_path / "engine") is None
    assert not (tmp_path / "engine" / "draft").exists()


def test_the_disk_has_to_hold_both(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(config_of(checkpoints, tmp_path / "first", checkpoints / "small"))
    first = contents(tmp_path / "first")
    written = sum(len(content) for name, content in first.items() if Path(name).name != "engine.json")
    for free in (written - 1, written):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(free, free, free))
        config = config_of(checkpoints, tmp_path / "engine", checkpoints / "small")
        if free == written:
            build(config)
            continue
        with pytest.raises(ResourceError, match=rf"the build needs {written} bytes and the disk of .* has {free} free"):
            build(config)


def test_guesses_are_verified_and_so_not_measured(checkpoints: Path, tmp_path: Path) -> None:
    def refuse(engine: Path, windows: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        raise AssertionError("there is nothing to measure")

    build(config_of(checkpoints, tmp_path / "exact", "int4"), measure=refuse)
    assert draft_of(tmp_path / "exact").accuracy is None

    measured: list[tuple[str, bool]] = []

    def measure(engine: Path, windows: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        measured.append((verify(engine).name, (engine / "draft").exists()))
        for window in windows:
            yield torch.zeros(len(window) - 1, VOCAB_SIZE)

    options = {"quantization": "int8"}
    manifest = build(config_of(checkpoints, tmp_path / "engine", "int4", **options), measure=measure)
    assert manifest.accuracy is not None
    assert manifest.speculation is not None
    assert draft_of(tmp_path / "engine").accuracy is None
    assert sorted(measured) == [("target", False), ("target", True)]


def test_the_summary_tells_who_guesses(checkpoints: Path, tmp_path: Path) -> None:
    options = {"kv_cache_bytes": 1 << 20, "max_draft_tokens": 5}
    manifest = build(config_of(checkpoints, tmp_path / "engine", "int4", **options))
    rows = dict(summary_rows(manifest, draft_of(tmp_path / "engine")))
    drafters = "prompt_lookup, suffix, draft_model"
    assert rows["speculation"] == f"{drafters}: up to 5 tokens ahead; 32.0 MiB of earlier answers"
    assert rows["draft"].startswith("target-int4: ")
    assert "KiB of weights (int4, float32); LlamaForCausalLM: 3 layers × 64 hidden" in rows["draft"]
    assert rows["its KV cache"] == rows["KV cache"] == "768 B a token (float32), blocks of 16, 512 KiB for 682 tokens"
    silent = manifest.model_copy(update={"speculation": None})
    assert dict(summary_rows(silent))["speculation"] == "none"
