"""Whole executors with a KV cache that is too small: what they answer is what they answer without tiers, with less computed."""

from __future__ import annotations

import itertools
import logging
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.headed_engine import VOCABULARY, write_headed_engine
from support.launching import launch_on_the_cpu
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, with_kernels, write_engine
from support.tiered import BLOCK_SIZE, PROMPTS, Served, answer, block_bytes, let_everything_pay
from trierarch.builder.compile import find_compiler
from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.builder.manifest import (
    MANIFEST_NAME,
    WEIGHTS_NAME,
    DrafterKind,
    DType,
    EngineManifest,
    KvType,
    Rope,
    Speculation,
)
from trierarch.builder.verify import digest_file
from trierarch.python_backend.executors.draft_model import DraftModel
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.executors.offload.block_files import SUFFIX, BlockFiles
from trierarch.python_backend.executors.offload.carrier import LocalCarrier
from trierarch.python_backend.executors.offload.config import OffloadConfig
from trierarch.python_backend.executors.prefix_file import PrefixFile
from trierarch.python_backend.request import FinishReason
from trierarch.python_backend.speculation.allotment import FixedLength

NUM_BLOCKS = 8
WAYS = [("cpu", KvType.FLOAT32), ("cpu", KvType.INT8), ("torch", KvType.FLOAT32), ("torch", KvType.INT8)]
"""How an engine runs, and in what its keys and values are kept"""


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    let_everything_pay(monkeypatch)


def make_engine(path: Path, way: str = "cpu", kv_dtype: KvType = KvType.FLOAT32, num_blocks: int = NUM_BLOCKS) -> Path:
    if way == "cpu" and find_compiler() is None:
        pytest.skip("no C++ compiler")
    path.mkdir()
    architecture = tiny_architecture(head_dim=16, ropes=(Rope(rotary_dim=16),))
    manifest = tiny_manifest(architecture, DType.FLOAT32, num_blocks, kv_dtype, BLOCK_SIZE)
    manifest = with_kernels(path, manifest) if way == "cpu" else manifest
    write_engine(path, manifest, random_weights(architecture))
    return path


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Opens an engine, and closes it at the end."""
    opened: list[StepExecutor] = []

    def open_one(engine: Path, **fields: Any) -> Served:
        prefixes = fields.pop("prefixes", None)
        allotment = fields.pop("allotment", None)
        executor = open_executor(engine, allotment, offload=OffloadConfig(**fields), prefixes=prefixes)
        assert isinstance(executor, StepExecutor)
        opened.append(executor)
        return Served(executor)

    yield open_one
    for executor in opened:
        executor.close()


@pytest.mark.parametrize(("way", "kv_dtype"), WAYS)
def test_host_memory_brings_back_what_was_evicted(way: str, kv_dtype: KvType, serve: Serve, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine", way, kv_dtype)
    plain, offloading = serve(engine), serve(engine, host_bytes=20 * block_bytes(engine))
    expected = [plain.ask(prompt) for prompt in PROMPTS]
    for _ in range(3):
        assert [offloading.ask(prompt) for prompt in PROMPTS] == expected
    host = offloading.offload.host
    assert host.num_hits >= 2 * 2 * len(PROMPTS)
    assert host.num_bytes == host.num_blocks * block_bytes(engine) <= 20 * block_bytes(engine)
    assert plain.executor.stats().offload is None


@pytest.mark.parametrize(("way", "kv_dtype"), WAYS)
def test_so_does_a_disk_and_for_the_next_process_too(way: str, kv_dtype: KvType, serve: Serve, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine", way, kv_dtype)
    tiers = {"host_bytes": 3 * block_bytes(engine), "disk_directory": tmp_path / "kept", "disk_bytes": 1 << 24}
    plain, offloading = serve(engine), serve(engine, **tiers)
    expected = [plain.ask(prompt) for prompt in PROMPTS]
    for _ in range(3):
        for prompt, tokens in zip(PROMPTS, expected, strict=True):
            assert offloading.ask(prompt) == tokens
            offloading.settle()
    assert offloading.disk.num_hits > 3
    offloading.executor.close()
    files = list((tmp_path / "kept").glob(f"*{SUFFIX}"))
    assert len(files) == offloading.disk.num_blocks > 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    again = serve(engine, **tiers)
    assert again.disk.num_blocks == len(files)
    assert [again.ask(prompt) for prompt in PROMPTS] == expected
    assert again.disk.num_hits > 3


@pytest.mark.parametrize("way", ["cpu", "launched"])
def test_a_storm_of_preemptions_changes_no_answer(
    way: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six sequences that grow to four blocks each on eight: they push each other out all the time."""
    engine, roomy = make_engine(tmp_path / "engine", way), make_engine(tmp_path / "roomy", way, num_blocks=64)
    fields: dict[str, Any] = {"max_tokens": 24, "n": 2, "temperature": 1.0, "seed": 5}
    apart = serve(roomy)
    expected = [answer(apart.submit(prompt, **fields), 2) for prompt in PROMPTS]
    launched = launch_on_the_cpu(monkeypatch) if way == "launched" else [True]
    offloading = serve(engine, host_bytes=6 * block_bytes(engine), disk_directory=tmp_path / "kept")
    for _ in range(2):
        streams = [offloading.submit(prompt, **fields) for prompt in PROMPTS]
        assert [answer(stream, 2) for stream in streams] == expected
    assert offloading.offload.num_recalls > 0
    assert offloading.offload.host.num_hits > 0
    assert any(launched)


@pytest.mark.parametrize("way", ["cpu", "torch"])
def test_a_head_finds_its_own_share_of_what_came_back(way: str, serve: Serve, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    if way == "cpu" and find_compiler() is None:
        pytest.skip("no C++ compiler")
    manifest = write_headed_engine(engine, DrafterKind.EAGLE3, way == "cpu", max_draft_tokens=3)
    own = manifest.kv_cache.block_size * manifest.kv_cache.bytes_per_token
    small = manifest.kv_cache.model_copy(update={"num_bytes": 64 // manifest.kv_cache.block_size * own})
    (engine / MANIFEST_NAME).write_text(manifest.model_copy(update={"kv_cache": small}).to_json())
    prompts = [tuple(token % VOCABULARY for token in prompt) for prompt in PROMPTS]
    fields: dict[str, Any] = {"max_tokens": 20}
    plain, offloading = serve(engine), serve(engine, host_bytes=1 << 20)
    expected = [plain.ask(prompt, **fields) for prompt in prompts]
    for _ in range(2):
        assert [offloading.ask(prompt, **fields) for prompt in prompts] == expected
    assert offloading.offload.host.num_hits > 0
    stats = [served.executor.stats().speculation for served in (plain, offloading)]
    assert all(its is not None for its in stats)
    assert offloading.offload.host.num_bytes > own * offloading.offload.host.num_blocks, (
        "the head's keys and values lie in the same blocks"
    )


@pytest.mark.parametrize("way", ["cpu", "torch"])
def test_a_draft_model_has_tiers_of_its_own_within_what_was_lent(way: str, serve: Serve, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine", way)
    draft = make_engine(engine / "draft", way)
    files = {f"draft/{name}": digest_file(draft / name) for name in (MANIFEST_NAME, WEIGHTS_NAME)}
    speculation = Speculation(drafters=(DrafterKind.DRAFT_MODEL,), max_draft_tokens=3, draft_engine="draft")
    manifest = EngineManifest.load(engine)
    files |= manifest.files
    (engine / MANIFEST_NAME).write_text(
        manifest.model_copy(update={"speculation": speculation, "files": files}).to_json()
    )
    directory, in_both = tmp_path / "kept", 2 * block_bytes(engine)
    tiers = {"host_bytes": 20 * in_both + 1, "disk_directory": directory}
    plain, offloading = serve(engine, allotment=FixedLength(3)), serve(engine, allotment=FixedLength(3), **tiers)
    expected = [plain.ask(prompt, max_tokens=20) for prompt in PROMPTS]
    for _ in range(2):
        for prompt, tokens in zip(PROMPTS, expected, strict=True):
            assert offloading.ask(prompt, max_tokens=20) == tokens
    assert offloading.offload.host.max_blocks == 20
    assert offloading.offload.host.num_hits > 0
    (drafter,) = offloading.executor._speculator._models
    model = drafter[0].drafter
    assert isinstance(model, DraftModel)
    own = model._kv.offload
    assert own is not None
    offloading.executor.close()
    stats = own.stats()
    assert stats.host.max_blocks == 20
    assert stats.host.num_hits > 0
    assert stats.disk is not None
    assert stats.disk.max_blocks == offloading.disk.max_blocks
    assert len(list(directory.glob(f"*{SUFFIX}"))) == stats.disk.num_blocks + offloading.disk.num_blocks
    speculated = [served.executor.stats().speculation for served in (plain, offloading)]
    assert all(its is not None and its.drafters[0].num_accepted_tokens > 0 for its in speculated)
    again = serve(engine, allotment=FixedLength(3), **tiers)
    assert [again.ask(prompt, max_tokens=20) for prompt in PROMPTS] == expected


def test_a_draft_that_the_client_sends_is_verified_on_what_came_back(serve: Serve, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine")
    manifest = EngineManifest.load(engine)
    speculation = Speculation(drafters=(DrafterKind.PROMPT_LOOKUP, DrafterKind.SUFFIX), max_draft_tokens=4)
    (engine / MANIFEST_NAME).write_text(manifest.model_copy(update={"speculation": speculation}).to_json())
    plain, offloading = serve(engine), serve(engine, host_bytes=1 << 20)
    expected = [plain.ask(prompt, max_tokens=16) for prompt in PROMPTS]
    for _ in range(2):
        assert [offloading.ask(prompt, max_tokens=16) for prompt in PROMPTS] == expected
    assert offloading.offload.host.num_hits > 0


def test_no_tenant_finds_what_another_has_computed(serve: Serve, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine")
    offloading = serve(engine, host_bytes=1 << 20, disk_directory=tmp_path / "kept")
    for prompt in PROMPTS:
        offloading.ask(prompt, cache_salt="mine")
    hits = offloading.offload.host.num_hits
    for prompt in PROMPTS:
        offloading.ask(prompt, cache_salt="yours")
    assert offloading.offload.host.num_hits == hits == 0
    offloading.ask(PROMPTS[0], cache_salt="mine")
    assert offloading.offload.host.num_hits == 2


def _flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def _other_block(content: bytes) -> bytes:
    return content.replace(content[50:66], bytes(16))


DAMAGE: list[Callable[[bytes], bytes]] = [_flipped, _other_block, lambda content: b"PK" + content[2:]]


@pytest.mark.parametrize("damage", [*DAMAGE, None])
def test_a_damaged_file_is_computed_again(
    damage: Callable[[bytes], bytes] | None, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(tmp_path / "engine")
    directory = tmp_path / "kept"
    offloading = serve(engine, host_bytes=3 * block_bytes(engine), disk_directory=directory)
    expected = []
    for prompt in PROMPTS:
        expected.append(offloading.ask(prompt))
        offloading.settle()
    files = list(directory.glob(f"*{SUFFIX}"))
    assert files
    for file in files:
        file.write_bytes(damage(file.read_bytes())) if damage else file.unlink()
    with caplog.at_level(logging.WARNING):
        assert offloading.ask(PROMPTS[0]) == expected[0]
    assert "is not used, and computed again" in caplog.text
    assert (offloading.disk.num_failures, offloading.disk.num_hits) == (1, 0)
    assert [offloading.ask(prompt) for prompt in PROMPTS] == expected


def test_a_disk_that_is_full_costs_what_it_would_have_kept_and_nothing_else(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(tmp_path / "engine")
    offloading = serve(engine, host_bytes=3 * block_bytes(engine), disk_directory=tmp_path / "kept")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with caplog.at_level(logging.WARNING):
            first = []
            for prompt in PROMPTS:
                first.append(offloading.ask(prompt))
                offloading.settle()  # or host memory has no slot for what leaves next, and nothing goes to disk
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("are not kept in") == 1
    assert offloading.disk.num_failures > 1
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["lock"]
    for prompt, tokens in zip(PROMPTS, first, strict=True):
        assert offloading.ask(prompt) == tokens
        offloading.settle()
    assert offloading.disk.num_blocks > 0, "it goes on once there is room"


@pytest.mark.parametrize("way", ["leave", "bring", "fill", "pieces"])
def test_a_copy_that_fails_costs_a_computation(way: str, serve: Serve, tmp_path: Path) -> None:
    """As where a device has no memory left to stage blocks in: every other time."""
    engine = make_engine(tmp_path / "engine")
    plain = serve(engine)
    host_bytes = (3 if way in ("fill", "pieces") else 20) * block_bytes(engine)
    offloading = serve(engine, host_bytes=host_bytes, disk_directory=tmp_path / "kept")
    assert offloading.executor._mover is not None
    carrier = offloading.executor._mover._carrier
    assert isinstance(carrier, LocalCarrier)
    copier, num_calls = carrier._copier, itertools.count()
    copy: Callable[..., Any] = getattr(copier, way)

    def fail_at_times(*arguments: Any) -> Any:
        if next(num_calls) % 2 == 0:
            raise RuntimeError("on purpose")
        return copy(*arguments)

    setattr(copier, way, fail_at_times)
    expected = [plain.ask(prompt) for prompt in PROMPTS]
    for _ in range(3):
        for prompt, tokens in zip(PROMPTS, expected, strict=True):
            assert offloading.ask(prompt) == tokens
            offloading.settle()
    assert offloading.disk.num_failures + offloading.offload.host.num_failures > 0
    assert offloading.disk.num_hits + offloading.offload.host.num_hits > 0


def test_it_may_be_closed_and_aborted_while_blocks_are_copied(serve: Serve, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine")
    tiers = {"host_bytes": 4 * block_bytes(engine), "disk_directory": tmp_path / "kept"}
    for aborts in (True, False):
        offloading = serve(engine, **tiers)
        for prompt in PROMPTS:
            offloading.ask(prompt)
        streams = [offloading.submit(prompt, max_tokens=20) for prompt in PROMPTS]
        if aborts:
            for number in range(len(PROMPTS), offloading.num_asked):
                offloading.executor.abort(str(number))
        offloading.executor.close()
        for stream in streams:
            while (delta := stream.get(timeout=60)).finish_reason is None:
                pass
            assert delta.finish_reason in (FinishReason.CANCELLED, FinishReason.LENGTH)
        kv = offloading.executor._scheduler._kv
        kv.check_integrity([])
        assert kv.num_free_blocks == kv.num_blocks
        assert not list((tmp_path / "kept").glob("*.part"))


def test_the_sleeping_file_of_prefixes_works_beside_it(serve: Serve, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine")
    digest = EngineManifest.load(engine).digest
    prefixes = PrefixFile(tmp_path / "asleep", digest, 1 << 30)
    first = serve(engine, host_bytes=1 << 20, prefixes=prefixes)
    expected = [first.ask(prompt) for prompt in PROMPTS]
    first.executor.close()
    again = serve(engine, host_bytes=1 << 20, prefixes=prefixes)
    assert again.ask(PROMPTS[-1]) == expected[-1]
    assert again.executor.stats().reused_blocks == 2
    assert [again.ask(prompt) for prompt in PROMPTS] == expected


def test_files_are_no_more_than_was_allowed(serve: Serve, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine")
    directory = tmp_path / "kept"
    tiers = {"host_bytes": 3 * block_bytes(engine), "disk_directory": directory}
    allowed = 4 * (block_bytes(engine) + 200)
    offloading = serve(engine, **tiers, disk_bytes=allowed)
    for prompt in PROMPTS * 2:
        offloading.ask(prompt)
        offloading.settle()
        assert sum(file.stat().st_size for file in directory.glob(f"*{SUFFIX}")) <= allowed
    assert offloading.disk.num_evictions > 0
    offloading.executor.close()
    fewer = serve(engine, **tiers, disk_bytes=allowed // 2)
    assert fewer.disk.num_blocks == len(list(directory.glob(f"*{SUFFIX}"))) == 2


def test_files_of_another_engine_are_left_alone(serve: Serve, tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    for way in ("cpu", "torch"):  # whose blocks are laid out otherwise, of the same weights
        engine = make_engine(tmp_path / way, way)
        others = set(directory.glob(f"*{SUFFIX}"))
        offloading = serve(engine, host_bytes=3 * block_bytes(engine), disk_directory=directory)
        assert offloading.disk.num_blocks == 0
        for prompt in PROMPTS:
            offloading.ask(prompt)
            offloading.settle()
        assert others < set(directory.glob(f"*{SUFFIX}"))
        offloading.executor.close()


def test_a_directory_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trierarch.python_backend.executors.offload.block_files._LOCK_SECONDS", 0.0)
    files = BlockFiles(tmp_path, "content", 100)
    with pytest.raises(ConfigError, match="another process keeps blocks in; give each model"):
        BlockFiles(tmp_path, "other", 100)
    files.close()
    BlockFiles(tmp_path, "other", 100).close()


def test_what_a_crash_left_is_swept_up(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path, "content", 4)
    assert files.write(bytes(16), [memoryview(b"abcd")])
    assert files.read(bytes(16)) == b"abcd"
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    path.with_suffix(".part").write_bytes(b"half")
    (tmp_path / "mine.kv").write_bytes(b"somebody else's")
    files.close()
    again = BlockFiles(tmp_path, "content", 4)
    assert again.kept == [bytes(16)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([path.name, "lock", "mine.kv"])
    again.close()


@pytest.mark.parametrize(
    ("fields", "error", "remedy"),
    [
        ({"host_bytes": -1}, ConfigError, "kv_cache_host_memory_bytes is -1: must be at least 0"),
        ({"host_bytes": 1 << 20, "disk_bytes": -1}, ConfigError, "kv_cache_disk_bytes is -1: must be at least 0"),
        ({"disk_directory": Path("kept")}, ConfigError, "give that some, such as 256 MiB, or name no directory"),
        ({"host_bytes": 10}, ConfigError, "one block takes [0-9]+: give it more, or 0 for none"),
        ({"host_bytes": 1 << 60}, ResourceError, "free some memory, or ask for fewer kv_cache_host_memory_bytes"),
        (
            {"host_bytes": 1 << 20, "disk_directory": Path("engine/weights.safetensors/below")},
            ConfigError,
            "let this user",
        ),
        (
            {"host_bytes": 1 << 20, "disk_directory": Path("kept"), "disk_bytes": 10},
            ConfigError,
            "give it more, or name",
        ),
        (
            {"host_bytes": 1 << 20, "disk_directory": Path("kept"), "disk_bytes": 1 << 60},
            ResourceError,
            "free some, or",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(
    fields: dict[str, Any], error: type[Exception], remedy: str, tmp_path: Path
) -> None:
    engine = make_engine(tmp_path / "engine")
    if "disk_directory" in fields:
        fields = {**fields, "disk_directory": tmp_path / fields["disk_directory"]}
    with pytest.raises(error, match=remedy):
        open_executor(engine, offload=OffloadConfig(**fields))
