"""Executors that launch their steps where nothing is gained by it, so that it can be seen what they answer."""

from __future__ import annotations

from typing import Any

import pytest

from trierarch.python_backend.executors import factory
from trierarch.python_backend.executors.torch.launched_step import LaunchedStep
from trierarch.python_backend.executors.torch.runner import TorchRunner
from trierarch.python_backend.scheduling.plan import Plan


def launch_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let executors do so that are opened from now on: of each step that they launch, whether it was planned ahead."""
    launched: list[bool] = []
    launch = TorchRunner.launch

    def noted(runner: TorchRunner, plan: Plan) -> LaunchedStep:
        launched.append(any(item.is_late for item in plan.scheduled))
        return launch(runner, plan)

    def launcher(runner: Any) -> TorchRunner:
        assert isinstance(runner, TorchRunner)
        return runner

    monkeypatch.setattr(TorchRunner, "launch", noted)
    monkeypatch.setattr(factory, "_launcher", launcher)
    return launched
