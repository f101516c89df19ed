"""Steps that are launched before those before them are collected draw, token for token, what they draw one after another."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.graphs import StaticRunner
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_engine
from support.stepping import Stepper
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.errors import ExecutorFailed
from trierarch.python_backend.executors.torch import launched_step
from trierarch.python_backend.executors.torch import runner as torch_runner
from trierarch.python_backend.executors.torch.captured_step import ReplayedStep
from trierarch.python_backend.executors.torch.gathered_attention import GatheredAttention
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.runner import TorchRunner
from trierarch.python_backend.request import FinishReason

CPU = torch.device("cpu")
META = torch.device("meta")
POISON = 49
"""Token whose embedding is NaN."""
CANCELLED, CANCELLED_AT = "6", 15
"""A request, and the turn at which it is told to end."""
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.9, "seed": 1},
    {"temperature": 1.2, "top_k": 7, "seed": 2, "min_tokens": 4, "end_ids": tuple(range(0, 50, 5))},
    {"temperature": 2.0, "top_p": 0.8, "seed": 3, "stop_words": tuple((token,) for token in range(0, 50, 7))},
    {"temperature": 1.0, "min_p": 0.05, "seed": 4, "logit_bias": {7: 2.0}, "n": 2},
    {"end_ids": tuple(range(0, 50, 3))},
)


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randint(POISON, (1 + 5 * index % 23,), generator=generator).tolist() for index in range(count)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineManifest]:
    return make_engine(tmp_path_factory.mktemp("engine"))


def make_engine(folder: Path, is_poisonous: bool = False) -> tuple[Path, EngineManifest]:
    manifest = tiny_manifest(tiny_architecture(tie_embeddings=False))
    weights = random_weights(manifest.architecture)
    if is_poisonous:
        weights["embed.weight"][POISON] = torch.nan
        weights["lm_head.weight"][POISON] = 0  # never the best: only prompts have it
    write_engine(folder, manifest, weights)
    return folder, manifest


def run_all(stepper: Stepper, is_launching: bool) -> int:
    """Requests arrive over time, half of them with prompts that were there before; one is cancelled. How many steps were
    planned ahead."""
    arrivals = deque(enumerate([*prompts(7), *prompts(7)]))
    turns = itertools.count()

    def meanwhile() -> None:
        turn = next(turns)
        if arrivals and turn % 2 == 0:
            number, prompt = arrivals.popleft()
            stepper.add(prompt, max_tokens=3 + number, **SAMPLINGS[number % len(SAMPLINGS)])
        if turn == CANCELLED_AT:
            stepper.scheduler.abort(CANCELLED)

    num_ahead = 0
    while arrivals or stepper.scheduler.has_work:
        meanwhile()
        if is_launching:
            num_ahead += stepper.fly(meanwhile)
        else:
            stepper.step()
    return num_ahead


def check_same(expected: Stepper, found: Stepper) -> None:
    """Both have answered alike, and all that was to be seen was."""
    own, its = expected.streams(), found.streams()
    assert own.keys() == its.keys()
    for place, tokens in own.items():
        shorter = min(len(tokens), len(its[place])) if place[0] == CANCELLED else None
        assert tokens[:shorter] == its[place][:shorter]
    ends = {delta.finish_reason for deltas in found.deltas.values() for delta in deltas}
    assert ends == {None, FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED}
    assert any(usage.num_cached_tokens for usage in found.usages())
    found.scheduler.check_integrity()
    assert found.kv.num_free_blocks == found.kv.num_blocks


@pytest.mark.parametrize(("num_blocks", "max_num_tokens"), [(16, 7), (64, 512)])
def test_launched_steps_draw_what_steps_one_after_another_draw(
    engine: tuple[Path, EngineManifest], num_blocks: int, max_num_tokens: int
) -> None:
    """Also in chunks, and with so few blocks that somebody is preempted."""
    one_by_one, launched = (
        Stepper.open(engine[1], TorchRunner(*engine, CPU), num_blocks, max_num_tokens=max_num_tokens) for _ in range(2)
    )
    run_all(one_by_one, is_launching=False)
    assert run_all(launched, is_launching=True) > 10
    check_same(one_by_one, launched)


def test_static_steps_go_on_from_tokens_that_the_host_has_not_seen(tmp_path: Path) -> None:
    manifest = tiny_manifest(tiny_architecture())
    operators = Operators(GatheredAttention(16), LoopedAdapters(), GatheredAttention(16))
    eager = StaticRunner.open(tmp_path, manifest, operators, CPU, None)
    static = StaticRunner.open(tmp_path, manifest, operators, CPU, ReplayedStep)
    one_by_one, launched = Stepper.open(manifest, eager), Stepper.open(manifest, static)
    run_all(one_by_one, is_launching=False)
    assert run_all(launched, is_launching=True) > 10
    check_same(one_by_one, launched)
    assert static.graphs is not None
    assert static.graphs.num_recorded >= 2


def test_who_cannot_be_drawn_for_is_told_late_and_harms_nobody(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, is_poisonous=True)
    alone = Stepper.open(engine[1], TorchRunner(*engine, CPU)).generate(prompts(3), max_tokens=8)
    stepper = Stepper.open(engine[1], TorchRunner(*engine, CPU))
    ids = [stepper.add(prompt, max_tokens=8) for prompt in prompts(3)]
    bad = stepper.add([1, POISON, 2], max_tokens=8, temperature=1.0)
    banned = stepper.add([1, 2], max_tokens=8, logit_bias={token: -torch.inf for token in range(50)})
    assert stepper.fly() > 0
    while stepper.scheduler.has_work:
        stepper.fly()
    assert isinstance(stepper.deltas[bad][-1].error, ExecutorFailed)
    assert "leave at least one token" in str(stepper.deltas[banned][-1].error)
    assert [stepper.token_ids(one) for one in ids] == alone


class Untouched:
    """In place of a HostCopy: the copy of a device that nobody can read."""

    copies: list[tuple[int, ...]]

    def __init__(self, tensor: torch.Tensor) -> None:
        assert tensor.device == META
        self.copies.append(tuple(tensor.shape))
        self._num_rows = tensor.shape[1]

    def wait(self) -> torch.Tensor:
        return torch.ones((3, self._num_rows), dtype=torch.int64)


def weights_on_meta(engine: Path, manifest: EngineManifest, device: torch.device) -> dict[str, torch.Tensor]:
    """Of a device that safetensors knows nothing of."""
    return {name: weight.to(device) for name, weight in random_weights(manifest.architecture).items()}


class Crossings(TorchDispatchMode):
    """Notes operators that bring content from the host to the device, but for `on_device`, which does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)]
        has_content = any(one.device == CPU and one.dim() > 0 for one in tensors)
        if has_content and any(one.device == META for one in tensors) and not _is_called_by("on_device"):
            self.found.append(str(func))
        return result


def _is_called_by(name: str) -> bool:
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame.f_code.co_name == name


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    Untouched.copies = []
    monkeypatch.setattr(launched_step, "HostCopy", Untouched)
    monkeypatch.setattr(torch_runner, "load_weights", weights_on_meta)
    return Untouched.copies


def test_a_launched_step_asks_the_device_for_nothing(
    engine: tuple[Path, EngineManifest], copies: list[tuple[int, ...]]
) -> None:
    """Tensors of the device `meta` have no content: whoever asks for a number, or for how many there are of one, gets an error.

    Nor does it bring it anything that it would have to wait for.
    """
    stepper = Stepper.open(engine[1], TorchRunner(*engine, META), max_num_tokens=16)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.ones(1, device=META).item()
    for turn, prompt in enumerate(prompts(12)):
        stepper.add(prompt, max_tokens=6, **(SAMPLINGS[turn % len(SAMPLINGS)] | {"end_ids": (), "n": 1}))
    with Crossings() as crossings:
        num_ahead = stepper.fly()
    assert crossings.found == []
    assert not stepper.scheduler.has_work or stepper.scheduler.schedule().scheduled == ()
    assert len(copies) == num_ahead + 1 > 6
    assert max(shape[1] for shape in copies) > 4
