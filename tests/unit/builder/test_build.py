"""An engine appears whole or not at all, and twice the same."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from support.checkpoints import BOS, CHAT_TEMPLATE, EOS, PAD, random_checkpoint
from trierarch.builder import machine, weights_file
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import CheckpointError, ConfigError, ResourceError
from trierarch.builder.manifest import DType, EngineManifest, Limits, Parallel, Tokens, WeightType
from trierarch.builder.verify import verify


class Recorder:
    """Progress that remembers, and may stop the build after some bytes."""

    def __init__(self, stop: BaseException | None = None, after: int = 0) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.advanced: dict[str, int] = {}
        self._stop, self._after = stop, after

    def stage(self, name: str, total: int | None, unit: str = "bytes") -> None:
        self.stages.append((name, total))

    def advance(self, amount: int) -> None:
        name = self.stages[-1][0]
        self.advanced[name] = self.advanced.get(name, 0) + amount
        if self._stop is not None and self.advanced[name] > self._after:
            raise self._stop


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint("llama", tmp_path / "tiny llama")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_two_builds_are_byte_identical(checkpoint: Path, tmp_path: Path) -> None:
    build(BuildConfig(model=str(checkpoint), output=tmp_path / "a"))
    shutil.copytree(checkpoint, tmp_path / "elsewhere" / checkpoint.name)
    build(BuildConfig(model=str(tmp_path / "elsewhere" / checkpoint.name), output=tmp_path / "deep" / "b"))
    assert contents(tmp_path / "a") == contents(tmp_path / "deep" / "b")
    assert str(tmp_path).encode() not in contents(tmp_path / "a")["engine.json"]


def test_the_manifest_says_what_was_built(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    config = BuildConfig(
        model=str(checkpoint),
        output=output,
        dtype=DType.BFLOAT16,
        max_batch_size=7,
        max_seq_len=99,
        kv_cache_bytes=1 << 20,
        block_size=8,
        enable_prefix_caching=False,
    )
    manifest = build(config)
    assert manifest == EngineManifest.load(output) == verify(output, digests=True)
    assert manifest.name == "tiny-llama"
    assert manifest.source == "tiny llama"
    assert manifest.limits == Limits(max_batch_size=7, max_seq_len=99)
    assert manifest.tokens == Tokens(bos=BOS, eos=(EOS,), pad=PAD, add_bos=False)
    assert manifest.kv_cache.bytes_per_token == 2 * 3 * 2 * 16 * 2
    assert (manifest.kv_cache.num_bytes, manifest.kv_cache.block_size) == (1 << 20, 8)
    assert not manifest.kv_cache.enable_prefix_caching
    assert (output / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert sorted(contents(output)) == sorted([*manifest.files, "engine.json"])


def test_weights_lie_aligned_and_named_as_the_manifest_promises(checkpoint: Path, tmp_path: Path) -> None:
    build(BuildConfig(model=str(checkpoint), output=tmp_path / "engine", dtype=DType.FLOAT32))
    raw = (tmp_path / "engine" / "weights.safetensors").read_bytes()
    assert (8 + int.from_bytes(raw[:8], "little")) % weights_file.ALIGNMENT == 0
    with safe_open(str(tmp_path / "engine" / "weights.safetensors"), "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("layers.0.qkv.weight").data_ptr() % 64 == 0
    layer = ("attn_norm", "mlp_norm", "qkv", "o", "gate_up", "down")
    outer = {"embed.weight", "norm.weight", "lm_head.weight", "rope.0.inv_freq"}
    assert names == outer | {f"layers.{index}.{name}.weight" for index in range(3) for name in layer}


def test_progress_counts_every_byte(checkpoint: Path, tmp_path: Path) -> None:
    progress = Recorder()
    manifest = build(BuildConfig(model=str(checkpoint), output=tmp_path / "engine"), progress)
    size = manifest.files["weights.safetensors"].num_bytes
    assert progress.stages == [("checkpoint", None), ("kernels", None), ("weights", size)]
    assert progress.advanced == {"weights": size}


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), RuntimeError("bug"), CheckpointError("bad")])
def test_an_interrupted_build_leaves_nothing(stop: BaseException, checkpoint: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    for output in (tmp_path / "engine", tmp_path / "new" / "place" / "engine"):
        with pytest.raises(type(stop)):
            build(BuildConfig(model=str(checkpoint), output=output), Recorder(stop, after=50_000))
        assert sorted(os.listdir(tmp_path)) == before


def test_an_interrupted_overwrite_leaves_the_old_engine(checkpoint: Path, tmp_path: Path) -> None:
    config = BuildConfig(model=str(checkpoint), output=tmp_path / "engine", overwrite=True)
    build(config)
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        build(config.model_copy(update={"block_size": 32}), Recorder(KeyboardInterrupt()))
    assert contents(tmp_path) == before


def test_overwrite_replaces_an_engine_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    config = BuildConfig(model=str(checkpoint), output=tmp_path / "engine")
    build(config)
    with pytest.raises(ConfigError, match=r"output is .*: an engine is there already; choose another, or --overwrite"):
        build(config)
    (tmp_path / "engine" / "stale").write_text("from before")
    assert build(config.model_copy(update={"overwrite": True, "block_size": 32})).kv_cache.block_size == 32
    assert "stale" not in contents(tmp_path / "engine")
    assert sorted(os.listdir(tmp_path)) == ["engine", "tiny llama"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_engine_is_never_replaced(overwrite: bool, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    (tmp_path / "link").symlink_to("thesis")
    for output in (tmp_path / "thesis", tmp_path / "thesis" / "chapter", tmp_path / "link"):
        with pytest.raises(ConfigError, match="something that is not an engine is there"):
            build(BuildConfig(model=str(checkpoint), output=output, overwrite=overwrite))
    assert (tmp_path / "thesis" / "chapter").read_text() == "years of work"


def test_an_empty_directory_is_filled(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    build(BuildConfig(model=str(checkpoint), output=tmp_path / "engine"))
    verify(tmp_path / "engine", digests=True)


def raises(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


def test_a_disk_that_fills_up_is_the_machines_fault(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", raises(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(ResourceError, match=r"the disk of .* is full: the build needs \d+ bytes; free some space"):
        build(BuildConfig(model=str(checkpoint), output=tmp_path / "engine"))
    assert os.listdir(tmp_path) == ["tiny llama"]


def test_a_full_disk_is_noticed_before_writing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    progress = Recorder()
    with pytest.raises(ResourceError, match=r"the build needs \d+ bytes and the disk of .* has 0 free"):
        build(BuildConfig(model=str(checkpoint), output=tmp_path / "engine"), progress)
    assert progress.advanced == {}
    assert os.listdir(tmp_path) == ["tiny llama"]


def test_an_unwritable_place_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"engine cannot be written \(.*\); choose another --output"):
        build(BuildConfig(model=str(checkpoint), output=tmp_path / "file" / "engine"))


def test_options_out_of_range_are_named(checkpoint: Path, tmp_path: Path) -> None:
    config = BuildConfig(model=str(checkpoint), output=tmp_path / "engine", dtype=DType.FLOAT32)
    for change, message in (
        (
            {"gpu_memory": 1 << 30},
            r"gpu_memory is '1073741824', but target is 'torch'; leave it out, or build for",
        ),
        (
            {"quantization": WeightType.NVFP4},
            r"quantization is 'nvfp4': torch engines take int8, int4, fp8, source; choose",
        ),
        ({"max_seq_len": 257}, r"max_seq_len is 257: the checkpoint's window is 256"),
        ({"kv_cache_bytes": 100}, r"kv_cache_bytes is 100: one block of this model takes 12288"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(config.model_copy(update=change))
    assert not config.output.exists()


def test_an_engine_for_several_gpus_says_so(checkpoint: Path, tmp_path: Path) -> None:
    """Its weights are those of one GPU's, and nothing is compiled that would not run."""
    one = build(BuildConfig(model=str(checkpoint), output=tmp_path / "one", dtype=DType.FLOAT32))
    config = BuildConfig(model=str(checkpoint), output=tmp_path / "two", dtype=DType.FLOAT32, tensor_parallel_size=2)
    two = build(config)
    assert two == verify(tmp_path / "two", digests=True)
    assert (one.parallel, two.parallel) == (None, Parallel(tensor_parallel_size=2, pipeline_parallel_size=1))
    assert two.files["weights.safetensors"] == one.files["weights.safetensors"]
    assert two.kernels is None


def test_the_default_dtype_is_what_the_machine_is_fast_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_torch_has_cuda", lambda: False)
    for flags, dtype in (({"avx2"}, DType.FLOAT32), ({"avx512_bf16"}, DType.BFLOAT16), ({"amx_bf16"}, DType.BFLOAT16)):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert machine.default_dtype() is dtype
    monkeypatch.setattr(machine, "cpu_flags", frozenset)
    monkeypatch.setattr(machine, "_torch_has_cuda", lambda: True)
    assert machine.default_dtype() is DType.BFLOAT16
