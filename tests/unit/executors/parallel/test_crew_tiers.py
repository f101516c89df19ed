"""Blocks of which two processes have a share each, beyond a KV cache that is too small: answers are those of one process that
has room, whatever one of the ranks fails at; and nobody waits for a rank that is gone.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.eventually import eventually
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_engine
from support.threaded_ranks import split
from support.tiered import BLOCK_SIZE, PROMPTS, Served, answer, block_bytes, let_everything_pay
from trierarch.builder.manifest import DType
from trierarch.python_backend.errors import ExecutorFailed
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.executors.offload.block_files import SUFFIX
from trierarch.python_backend.executors.offload.config import NO_OFFLOAD, OffloadConfig

STORM: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0, "seed": 5}
"""Six of these grow to four blocks each, on eight."""


def write_split_engine(path: Path, num_ranks: int, num_blocks: int) -> Path:
    """The same model each time."""
    path.mkdir()
    architecture = tiny_architecture()
    manifest = tiny_manifest(architecture, DType.FLOAT32, num_blocks, block_size=BLOCK_SIZE)
    write_engine(path, manifest if num_ranks == 1 else split(manifest, num_ranks), random_weights(architecture))
    return path


@contextmanager
def served(engine: Path, offload: OffloadConfig = NO_OFFLOAD) -> Iterator[tuple[Served, list[psutil.Process]]]:
    """An engine, and its ranks but for 0; they are gone afterwards."""
    before = set(psutil.Process().children())
    executor = open_executor(engine, offload=offload)
    assert isinstance(executor, StepExecutor)
    ranks = list(set(psutil.Process().children()) - before)
    try:
        yield Served(executor), ranks
    finally:
        executor.close()
    assert not any(rank.is_running() for rank in ranks)


def shares_in(directory: Path) -> list[str]:
    """How the names of each rank's files begin, in no order."""
    return list({path.stem.partition("-")[0] for path in directory.glob(f"*{SUFFIX}")})


def are_alike(directory: Path, num_blocks: int) -> bool:
    """Whether both ranks have files of the same blocks, of so many."""
    keys = [{path.stem.partition("-")[2] for path in directory.glob(f"{share}-*")} for share in shares_in(directory)]
    return [len(its) for its in keys] == [num_blocks] * len(keys) and len(set(map(frozenset, keys))) <= 1


def test_two_ranks_keep_their_shares_of_blocks_through_whatever_befalls_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_everything_pay(monkeypatch)
    directory = tmp_path / "kept"
    engine = write_split_engine(tmp_path / "engine", 2, num_blocks=8)
    with served(write_split_engine(tmp_path / "roomy", 1, num_blocks=64)) as (roomy, _):
        expected = [roomy.ask(prompt, max_tokens=2) for prompt in PROMPTS]
        stormy = [answer(roomy.submit(prompt, **STORM)) for prompt in PROMPTS]
    tiers = OffloadConfig(host_bytes=3 * block_bytes(engine), disk_directory=directory)

    def ask_all(offloading: Served) -> None:
        for prompt, tokens in zip(PROMPTS, expected, strict=True):
            assert offloading.ask(prompt, max_tokens=2) == tokens
            offloading.settle()

    with served(engine, tiers) as (offloading, (rank,)):
        for _ in range(2):
            ask_all(offloading)
        host = offloading.offload.host
        assert offloading.disk.num_hits > 0
        assert host.num_bytes == host.num_blocks * block_bytes(engine) <= tiers.host_bytes, "of both shares"
        assert are_alike(directory, offloading.disk.num_blocks)

        streams = [offloading.submit(prompt, **STORM) for prompt in PROMPTS]
        assert [answer(stream) for stream in streams] == stormy
        offloading.settle()
        assert offloading.disk.num_failures == offloading.offload.host.num_failures == 0

        # One of them can write no files: what the other writes is of no use.
        resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        for number in range(6):
            offloading.ask(tuple(3 + (index + number) % 40 for index in range(40)), max_tokens=1)
            offloading.settle()
        resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        num_failures = offloading.disk.num_failures
        assert num_failures > 0
        ask_all(offloading)
        eventually(lambda: are_alike(directory, offloading.disk.num_blocks), "what only one has is deleted")

        # One of them cannot read what it wrote, and says so: the other has read its own.
        for path in directory.glob(f"{shares_in(directory)[0]}-*"):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        ask_all(offloading)
        assert offloading.disk.num_failures > num_failures
        ask_all(offloading)
        eventually(lambda: are_alike(directory, offloading.disk.num_blocks), "what only one has is deleted")

    assert not list(directory.glob("*.part"))
    num_kept = offloading.disk.num_blocks
    assert are_alike(directory, num_kept)
    first, second = ({path for path in directory.glob(f"{share}-*")} for share in shares_in(directory))
    min(first).unlink()
    max(second).unlink()

    with served(engine, replace(tiers, host_bytes=40 * block_bytes(engine))) as (again, (rank,)):
        assert again.disk.num_blocks == num_kept - 2, "what only one has is not found"
        eventually(lambda: are_alike(directory, num_kept - 2), "it is deleted")
        ask_all(again)
        assert again.disk.num_hits > 0
        ask_all(again)
        assert again.offload.host.num_hits > 0

        num_recalls = again.offload.num_recalls
        rank.send_signal(signal.SIGSTOP)
        stream = again.submit(PROMPTS[0])
        eventually(lambda: again.offload.num_recalls > num_recalls, "blocks are on their way back")
        rank.kill()
        last = stream.get(timeout=60)
        assert isinstance(last.error, ExecutorFailed)
        assert f"rank 1 of 2 (process {rank.pid}) has ended: signal 9" in str(last.error)
    kv = again.executor._scheduler._kv
    kv.check_integrity([])
    assert kv.num_free_blocks == kv.num_blocks
