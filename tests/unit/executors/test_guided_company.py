"""Guided answers amid everything at once: adapters, drafts, chunks, prefixes, preemption and siblings change none of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.asking import Client, Stream
from support.guided_answers import EBNF, REGEX, SCHEMA, obeys
from support.guiding import readable_engine
from support.packed_adapters import taking_adapters, write_random_packed
from support.random_engine import with_kernels
from trierarch.builder.compile import find_compiler
from trierarch.builder.manifest import MANIFEST_NAME, WEIGHTS_NAME, DrafterKind, EngineManifest, Speculation
from trierarch.builder.verify import digest_file
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.speculation.allotment import FixedLength

ADAPTERS = ("a", "b", "c")
"""More than there are slots."""
SHARED = tuple(40 + place % 90 for place in range(36))
"""What prompts begin with: whole blocks of it are found in the prefix cache."""
DRAFTERS = (DrafterKind.DRAFT_MODEL, DrafterKind.SUFFIX, DrafterKind.PROMPT_LOOKUP)


@dataclass
class Pair:
    """The same model twice."""

    crowded: Client
    """With few blocks, short steps, prefixes, and everybody who guesses."""
    alone: Client
    """With nothing of all that."""
    num_preemptions: int = 0
    num_cached_tokens: int = 0


def write_adapted(folder: Path, is_compiled: bool, **changes: Any) -> EngineManifest:
    folder.mkdir()
    manifest = readable_engine(folder, block_size=16 if is_compiled else 4, **changes)
    manifest = taking_adapters(manifest, folder, max_adapters=2)
    if is_compiled:
        manifest = with_kernels(folder, manifest)
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return manifest


@pytest.fixture(scope="module", params=["eager", "compiled"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    is_compiled = request.param == "compiled"
    if is_compiled and find_compiler() is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("engines")
    (folder / "shelf").mkdir()
    manifest = write_adapted(folder / "alone", is_compiled, num_blocks=64 if is_compiled else 256)
    uncached = manifest.kv_cache.model_copy(update={"enable_prefix_caching": False})
    (folder / "alone" / MANIFEST_NAME).write_text(manifest.model_copy(update={"kv_cache": uncached}).to_json())
    for seed, name in enumerate(ADAPTERS):
        write_random_packed(folder / "shelf", name, manifest, seed=seed, strength=4.0)
    crowded = write_adapted(folder / "crowded", is_compiled, num_blocks=5 if is_compiled else 18, max_num_tokens=8)
    write_adapted(folder / "crowded/draft", is_compiled)
    files = {f"draft/{name}": digest_file(folder / "crowded/draft" / name) for name in (MANIFEST_NAME, WEIGHTS_NAME)}
    speculation = Speculation(drafters=DRAFTERS, max_draft_tokens=3, draft_engine="draft")
    crowded = crowded.model_copy(update={"speculation": speculation, "files": {**crowded.files, **files}})
    (folder / "crowded" / MANIFEST_NAME).write_text(crowded.to_json())
    executors = (
        open_executor(folder / "crowded", FixedLength(3), (folder / "shelf",)),
        open_executor(folder / "alone", adapter_directories=(folder / "shelf",)),
    )
    yield Pair(*map(Client, executors))
    for executor in executors:
        executor.close()


def test_company_changes_no_guided_answer(pair: Pair) -> None:
    for seed in range(4):
        ask_in_company(pair, random.Random(seed))
    assert pair.num_preemptions > 0
    assert pair.num_cached_tokens > 0
    stats = pair.crowded.executor.stats()
    assert stats.speculation is not None
    assert sum(drafter.num_accepted_tokens for drafter in stats.speculation.drafters) > 0
    assert stats.adapters is not None
    assert stats.adapters.num_loads >= len(ADAPTERS)


def ask_in_company(pair: Pair, chance: random.Random) -> None:
    """Twice: the second time the prompts are in the prefix cache, and the answers in the history that drafts come from."""
    asks: list[dict[str, Any]] = [
        {
            "guide": chance.choice([REGEX, SCHEMA, EBNF, None]),
            "adapter": chance.choice(["", *ADAPTERS]),
            "n": chance.choice([1, 1, 2]),
            "prompt": (*SHARED[: chance.choice([0, 18, 36])], *(chance.randrange(2, 200) for _ in range(1, 5))),
            "temperature": chance.choice([0.0, 1.2]),
            "seed": chance.randrange(100),
            "max_tokens": 20,
            "frequency_penalty": chance.choice([0.0, 0.8]),
        }
        for _ in range(6)
    ]
    alone = [stream for ask in asks for stream in pair.alone.ask(dict(ask))]
    guides = [ask["guide"] for ask in asks for _ in range(ask["n"])]
    for _ in range(2):
        crowd = pair.crowded.ask(*map(dict, asks))
        for guide, one, other in zip(guides, alone, crowd, strict=True):
            assert (one.token_ids, one.reason, str(one.error)) == (other.token_ids, other.reason, str(other.error))
            assert guide is None or obeys(other, guide)
        pair.num_preemptions += sum(stream.num_preemptions for stream in crowd)
        pair.num_cached_tokens += sum(map(cached, crowd))


def cached(stream: Stream) -> int:
    usage = stream.deltas[-1].usage
    assert usage is not None
    return usage.num_cached_tokens
