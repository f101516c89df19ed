"""Cached prefixes outlive the process: the next one answers the same and computes less; a file that is no good changes nothing."""

from __future__ import annotations

import logging
import queue
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, with_kernels, write_engine
from support.scheduling import make_request
from trierarch.builder.compile import find_compiler
from trierarch.builder.manifest import MANIFEST_NAME, DType, EngineManifest, KvType, Rope
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.executors.prefix_file import NAME, PrefixFile
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.kv.prefix_cache import chain_key, root_key
from trierarch.python_backend.request import TokenDelta

PROMPT = tuple(3 + index % 40 for index in range(40))
BLOCK_SIZE = 16
PLENTY = 1 << 30


@pytest.fixture(params=[KvType.FLOAT32, KvType.INT8])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return _engine(tmp_path / "engine", request.param)


def _engine(path: Path, kv_dtype: KvType, seed: int = 0) -> Path:
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    path.mkdir()
    architecture = tiny_architecture(head_dim=16, ropes=(Rope(rotary_dim=16),))
    manifest = with_kernels(path, tiny_manifest(architecture, DType.FLOAT32, kv_dtype=kv_dtype, block_size=BLOCK_SIZE))
    write_engine(path, manifest, random_weights(architecture, seed=seed))
    return path


def generate(
    engine: Path, directory: Path | None, salts: tuple[str, ...] = ("",), max_bytes: int = PLENTY
) -> list[tuple[list[int], int]]:
    """(tokens, cached tokens) of PROMPT for each salt, one behind the other, by a process of its own so to speak."""
    digest = EngineManifest.load(engine).digest
    executor = open_executor(engine, prefixes=None if directory is None else PrefixFile(directory, digest, max_bytes))
    answers = []
    for number, salt in enumerate(salts):
        deltas: queue.SimpleQueue[TokenDelta] = queue.SimpleQueue()
        executor.submit(
            make_request(str(number), PROMPT, max_tokens=6, end_ids=(), temperature=0.0, cache_salt=salt), deltas.put
        )
        tokens: list[int] = []
        while True:
            delta = deltas.get(timeout=60)
            tokens += delta.token_ids
            if delta.finish_reason is not None:
                break
        assert delta.usage is not None
        answers.append((tokens, delta.usage.num_cached_tokens))
    executor.drain(10.0)
    executor.close()
    executor.close()
    return answers


def test_the_next_process_finds_what_the_last_one_computed_and_answers_the_same(engine: Path, tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    ((tokens, cached),) = generate(engine, directory)
    assert cached == 0

    assert generate(engine, directory) == [(tokens, 32)], "all full blocks but the last token's"
    assert generate(engine, directory) == [(tokens, 32)], "and the one after it too"
    assert generate(engine, None) == [(tokens, 0)]
    assert stat.S_IMODE((directory / NAME).stat().st_mode) == 0o600
    assert [path.name for path in directory.iterdir()] == [NAME]


def test_an_engine_that_torch_runs_says_that_it_keeps_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    architecture = tiny_architecture()
    (tmp_path / "engine").mkdir()
    write_engine(tmp_path / "engine", tiny_manifest(architecture, block_size=BLOCK_SIZE), random_weights(architecture))
    with caplog.at_level(logging.INFO):
        generate(tmp_path / "engine", tmp_path / "kept")
    assert "prefix_cache_directory keeps nothing of it" in caplog.text
    assert not (tmp_path / "kept").exists()


def test_no_tenant_finds_what_another_has_computed(engine: Path, tmp_path: Path) -> None:
    generate(engine, tmp_path, ("mine",))

    assert [cached for _, cached in generate(engine, tmp_path, ("", "yours", "mine"))] == [0, 0, 32]


def test_only_as_much_is_kept_as_was_allowed_and_the_latest_first(engine: Path, tmp_path: Path) -> None:
    generate(engine, tmp_path, ("old", "new"))
    block_bytes = (tmp_path / NAME).stat().st_size // 4  # two of each

    generate(engine, tmp_path / "again", ("old", "new"), max_bytes=int(2.5 * block_bytes))

    assert [cached for _, cached in generate(engine, tmp_path / "again", ("old", "new"))] == [0, 32]
    generate(engine, tmp_path / "none", ("old",), max_bytes=0)
    assert not (tmp_path / "none").exists()


def _cut(content: bytes) -> bytes:
    return content[:-1]


def _extended(content: bytes) -> bytes:
    return content + b"\0"


def _flipped(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


def _foreign(content: bytes) -> bytes:
    return b"PK" + content


def _headless(content: bytes) -> bytes:
    return content[:20]


def _other_header(content: bytes) -> bytes:
    return content.replace(b'"block_size"', b'"block_sine"')


DAMAGE: list[Callable[[bytes], bytes]] = [_cut, _extended, _flipped, _foreign, _headless, _other_header, lambda _: b""]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_left_alone(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = _engine(tmp_path / "engine", KvType.FLOAT32)
    ((tokens, _),) = generate(engine, tmp_path)
    path = tmp_path / NAME
    path.write_bytes(damage(path.read_bytes()))

    with caplog.at_level(logging.WARNING):
        assert generate(engine, tmp_path) == [(tokens, 0)]

    assert "is not used" in caplog.text
    assert generate(engine, tmp_path) == [(tokens, 32)], "a good one is in its place"


def test_the_file_of_another_engine_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = _engine(tmp_path / "engine", KvType.FLOAT32)
    other = _engine(tmp_path / "other", KvType.FLOAT32, seed=1)
    manifest = (other / MANIFEST_NAME).read_text()
    (other / MANIFEST_NAME).write_text(manifest.replace('"tiny"', '"other"'))
    generate(engine, tmp_path)

    with caplog.at_level(logging.WARNING):
        assert generate(other, tmp_path)[0][1] == 0

    assert "another engine" in caplog.text


def test_a_directory_that_cannot_be_written_costs_the_cache_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = _engine(tmp_path / "engine", KvType.FLOAT32)
    (tmp_path / "file").write_text("no directory")

    with caplog.at_level(logging.WARNING):
        generate(engine, tmp_path / "file" / "below")

    assert "was not saved" in caplog.text


def test_restored_blocks_are_evicted_in_the_order_they_would_have_been(tmp_path: Path) -> None:
    """Blocks by hand: adapters' chains apart, contents kept, bookkeeping whole."""
    file = PrefixFile(tmp_path, "engine", PLENTY)
    array = np.zeros((2, 2, 8, 3), dtype=np.float32)
    kv = KVCacheManager(8, 4)
    keys = [chain_key(root_key(adapter, ""), (1, 2, 3, 4)) for adapter in ("", "french", "german")]
    for number, block_id in enumerate(kv.restore(keys)):
        array[:, :, block_id] = number + 1
    assert file.save(kv, [array]) == 3

    again, other = KVCacheManager(8, 4), np.zeros_like(array)
    assert file.restore(again, [other]) == 3

    assert [key for key, _ in again.cached_blocks()] == keys
    assert again.cache is not None
    for number, key in enumerate(keys):
        (block_id,) = again.cache.match([key])
        assert (other[:, :, block_id] == number + 1).all()
    again.check_integrity([])
    small = KVCacheManager(2, 4)
    assert file.restore(small, [np.zeros((2, 2, 2, 3), dtype=np.float32)]) == 2
    assert [key for key, _ in small.cached_blocks()] == keys[1:], "the latest"
    small.check_integrity([])
