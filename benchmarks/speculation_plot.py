"""The sweep of the benchmark `speculation` as an SVG: rates over those without speculation, one panel a kind of chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trierarch.benchmarks.chats import Kind
from trierarch.benchmarks.engine import EXECUTOR
from trierarch.benchmarks.speculation_session import Point, off

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, points: Sequence[Point]) -> None:
    """Write the plot to `path`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot: nothing global, no display

    with rc_context({"svg.hashsalt": "speculation", "font.size": 9}):  # the same points give the same file
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        panels = figure.subplots(1, len(Kind), sharey=True)
        for kind, axes in zip(Kind, panels, strict=True):
            _panel(axes, [point for point in points if point.kind is kind and off(EXECUTOR) in point.rates])
            axes.set(title=kind.value, xlabel="streams")
        panels[0].set_ylabel("tokens a second, times no speculation")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axes: Axes, points: Sequence[Point]) -> None:
    axes.set_xscale("log", base=2)
    axes.grid(visible=True, alpha=0.3)
    axes.axhline(1, color="black", linewidth=0.8)
    if not points:
        return
    names = dict.fromkeys(name for point in points for name in point.rates)
    for name in names:
        if name == off(EXECUTOR):
            continue
        measured = [point for point in points if name in point.rates]
        counts = [point.num_streams for point in measured]
        times = [point.rates[name] / point.rates[off(EXECUTOR)] for point in measured]
        is_adaptive = name == EXECUTOR
        label = "adaptive" if is_adaptive else f"always {name.removeprefix(f'{EXECUTOR}-')}"
        axes.plot(
            counts, times, marker="o", label=label, linewidth=2.5 if is_adaptive else 1, zorder=3 if is_adaptive else 2
        )
    counts = sorted({point.num_streams for point in points})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend()
