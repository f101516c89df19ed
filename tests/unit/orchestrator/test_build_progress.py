"""Bars of a build, as they are left on the screen."""

from __future__ import annotations

import io

from rich.console import Console

from trierarch.orchestrator.build_progress import RichProgress


def test_a_bar_counts_in_its_own_unit() -> None:
    screen = io.StringIO()
    with RichProgress(Console(file=screen, width=120, force_terminal=False)) as progress:
        progress.stage("kernels", None)
        progress.stage("weights", 3 << 20)
        progress.advance(1 << 20)
        progress.stage("accuracy", 2815, "tokens")
        progress.advance(1000)
    lines = {line.split()[1]: line for line in screen.getvalue().splitlines() if line.strip()}
    assert "3.0/3.0 MiB" in lines["weights"]
    assert "2,815/2,815 tokens" in lines["accuracy"]
    assert "/" not in lines["kernels"]
