"""Executors of real engines with adapters: several in one batch draw what each draws alone; and what a draft runs with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.adapted_answers import GREEDY, PROMPTS, SEEDED, answers
from support.launching import launch_on_the_cpu
from support.packed_adapters import random_packed, taking_adapters, write_random_packed
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, with_kernels, write_engine
from trierarch.builder.compile import find_compiler
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import (
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Architecture,
    DrafterKind,
    EngineManifest,
    Rope,
    Speculation,
)
from trierarch.builder.packed_adapter import write_packed
from trierarch.builder.verify import digest_file
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.adapters.draft_adapters import DraftAdapters
from trierarch.python_backend.errors import UnknownAdapter
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.executors.fake import FakeRunner, FakeWeights
from trierarch.python_backend.request import SamplingParams
from trierarch.python_backend.speculation.allotment import FixedLength

NAMES = ("", "a", "b", "a", "c")


def tiny(**changes: int) -> Architecture:
    return tiny_architecture(head_dim=16, ropes=(Rope(rotary_dim=16),), **changes)


def make_engine(folder: Path, is_compiled: bool = False, architecture: Architecture | None = None) -> EngineManifest:
    """An engine that takes adapters, in a folder of its own."""
    folder.mkdir()
    architecture = architecture or tiny()
    manifest = tiny_manifest(architecture, block_size=16)
    write_engine(folder, manifest, random_weights(architecture))
    manifest = taking_adapters(manifest, folder, max_adapters=2)
    if is_compiled:
        manifest = with_kernels(folder, manifest)
    write_engine(folder, manifest, random_weights(architecture))
    return manifest


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_many_adapters_in_one_batch_draw_what_each_draws_alone(tmp_path: Path, is_compiled: bool) -> None:
    if is_compiled and find_compiler() is None:
        pytest.skip("no C++ compiler")
    engine, shelf = tmp_path / "engine", tmp_path / "shelf"
    manifest = make_engine(engine, is_compiled)
    shelf.mkdir()
    (engine / "adapters").mkdir()
    for seed, name in enumerate(("b", "c")):
        write_random_packed(shelf, name, manifest, seed=seed, strength=4.0)
    own = random_packed(manifest, seed=5, strength=4.0)
    write_packed(own, shelf / "a.safetensors")
    executor = open_executor(engine, adapter_directories=(shelf,))
    try:
        alone = [one for name in NAMES for one in answers(executor, [name])]
        assert answers(executor, NAMES) == alone
        assert len({tuple(output) for output in alone}) > 2 * len(PROMPTS)
        assert [info.name for info in executor.adapters()] == ["a", "b", "c"]
        with pytest.raises(UnknownAdapter):
            executor.find_adapter("d")
        stats = executor.stats().adapters
        assert stats is not None
        assert (stats.max_adapters, stats.num_registered, stats.num_loads) == (2, 3, 3)
    finally:
        executor.close()


def test_adapters_in_launched_steps_draw_what_they_draw_in_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More adapters than slots, so that one takes another's place while the last step that ran with it is in flight."""
    engine, shelf = tmp_path / "engine", tmp_path / "shelf"
    manifest = make_engine(engine)
    shelf.mkdir()
    for seed, name in enumerate(("a", "b", "c")):
        write_random_packed(shelf, name, manifest, seed=seed, strength=4.0)
    samplings = GREEDY, replace(SEEDED, max_tokens=8)
    found = []
    launched: list[bool] = []
    for is_launching in (False, True):
        launched = launch_on_the_cpu(monkeypatch) if is_launching else []
        executor = open_executor(engine, adapter_directories=(shelf,))
        try:
            found.append([answers(executor, NAMES, sampling, prompts=PROMPTS[:2]) for sampling in samplings])
        finally:
            executor.close()
    assert found[0] == found[1]
    assert sum(launched) > 20


def test_directories_are_no_use_to_an_engine_that_takes_no_adapters(tmp_path: Path) -> None:
    manifest = tiny_manifest(tiny())
    write_engine(tmp_path, manifest, random_weights(manifest.architecture))
    with pytest.raises(ConfigError, match=r"rebuild .* with --max-adapters"):
        open_executor(tmp_path, adapter_directories=(tmp_path,))


def make_guessing(engine: Path, *drafters: DrafterKind, is_compiled: bool = False) -> EngineManifest:
    """An engine that takes adapters and guesses; its draft, if it has one, is the same model."""
    manifest = make_engine(engine, is_compiled)
    folder = "draft" if DrafterKind.DRAFT_MODEL in drafters else None
    files = dict(manifest.files)
    if folder is not None:
        assert make_engine(engine / folder).lora is not None
        files |= {f"{folder}/{name}": digest_file(engine / folder / name) for name in (MANIFEST_NAME, WEIGHTS_NAME)}
    speculation = Speculation(drafters=drafters, max_draft_tokens=3, draft_engine=folder)
    manifest = manifest.model_copy(update={"speculation": speculation, "files": files})
    write_engine(engine, manifest, random_weights(manifest.architecture))
    return manifest


@pytest.mark.parametrize("sampling", [replace(GREEDY, max_tokens=24), SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    "drafters",
    [
        (DrafterKind.SUFFIX,),
        (DrafterKind.PROMPT_LOOKUP,),
        (DrafterKind.DRAFT_MODEL,),
        (DrafterKind.SUFFIX, DrafterKind.PROMPT_LOOKUP, DrafterKind.DRAFT_MODEL),
    ],
    ids=lambda drafters: "+".join(drafters),
)
def test_adapted_answers_do_not_depend_on_guesses(
    tmp_path: Path, drafters: tuple[DrafterKind, ...], sampling: SamplingParams
) -> None:
    """Twice, since the second time the answers are in the history; more adapters than slots."""
    engine, shelf = tmp_path / "engine", tmp_path / "shelf"
    manifest = make_guessing(engine, *drafters)
    shelf.mkdir()
    for seed, name in enumerate(("a", "b", "c")):
        write_random_packed(shelf, name, manifest, seed=seed, strength=4.0)
    executor = open_executor(engine, FixedLength(3), (shelf,))
    try:
        expected = answers(executor, NAMES, sampling, guesses=False)
        assert len({tuple(output) for output in expected}) > 2 * len(PROMPTS)
        assert answers(executor, NAMES, sampling) == expected
        assert answers(executor, NAMES, sampling) == expected
        stats = executor.stats().speculation
        assert stats is not None
        assert sum(drafter.num_accepted_tokens for drafter in stats.drafters) > 0
    finally:
        executor.close()


def test_a_self_draft_runs_with_the_same_adapter(tmp_path: Path) -> None:
    """The draft is the same model: with the same adapter it guesses everything right, without it next to nothing."""
    engine, shelf = tmp_path / "engine", tmp_path / "shelf"
    manifest = make_guessing(engine, DrafterKind.DRAFT_MODEL)
    shelf.mkdir()
    write_random_packed(shelf, "a", manifest, strength=4.0)
    executor = open_executor(engine, FixedLength(3), (shelf,))
    try:
        answers(executor, ["a"])
        stats = executor.stats().speculation
        assert stats is not None
        (drafter,) = stats.drafters
        assert drafter.num_accepted_tokens == drafter.num_draft_tokens > 0
    finally:
        executor.close()


def test_another_draft_runs_with_its_own_adapter_where_there_is_one(tmp_path: Path) -> None:
    engine, shelf = tmp_path / "engine", tmp_path / "shelf"
    target = make_engine(engine)
    draft = make_engine(engine / "draft", architecture=tiny(intermediate_size=32))
    shelf.mkdir()
    tensors = {name: write_random_packed(shelf, name, target, seed=ord(name)) for name in ("a", "b", "c")}
    its_own = write_random_packed(shelf, "a.draft", draft)
    write_random_packed(shelf, "b.draft", target)
    found = AdapterDirectories((shelf,), engine, target)
    runner = FakeRunner(1, 1)
    arrange = DraftAdapters(runner.arrange, AdapterDirectories((shelf,), engine / "draft", draft), False)
    assert arrange(found.find("a"), tensors["a"]) == runner.arrange(its_own)
    assert arrange(found.find("b"), tensors["b"]) is None, "b.draft is no adapter of the draft"
    assert arrange(found.find("c"), tensors["c"]) is None
    same = DraftAdapters(runner.arrange, AdapterDirectories((), engine / "draft", draft), True)
    assert same(found.find("a"), tensors["a"]) == FakeWeights(
        tensors["a"].num_bytes, int(tensors["a"].manifest.digest[:8], 16)
    )
