"""The curves of the benchmark `scaling` as an SVG, the roofline drawn in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trierarch.benchmarks.scaling_session import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, against_streams: Sequence[Point], against_context: Sequence[Point]) -> None:
    """Write the plot to `path`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot: nothing global, no display

    with rc_context({"svg.hashsalt": "scaling", "font.size": 9}):  # the same points give the same file
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _curve(left, against_streams, lambda point: point.num_sequences)
        left.set(xlabel="streams", ylabel="tokens a second, all streams", yscale="log")
        left.set_title(_title("Decoding against streams", against_streams, "{point.prompt_length}-token prompts"))
        _curve(right, against_context, lambda point: point.prompt_length)
        right.set(xlabel="tokens of context at the start", ylabel="tokens a second")
        right.set_ylim(bottom=0)
        right.set_title("Decoding against context, one stream")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _title(title: str, points: Sequence[Point], suffix: str) -> str:
    return f"{title}, {suffix.format(point=points[0])}" if points else title


def _curve(axes: Axes, points: Sequence[Point], place: Callable[[Point], int]) -> None:
    axes.set_xscale("log", base=2)
    axes.grid(visible=True, alpha=0.3)
    if not points:
        return
    places = [place(point) for point in points]
    highest = [point.highest for point in points]
    axes.plot(places, highest, color="black", linestyle="--", label="roofline")
    axes.fill_between(places, [point.lowest for point in points], highest, color="black", alpha=0.1, linewidth=0)
    for name in sorted({name for point in points for name in point.rates}):
        measured = [(place(point), point.rates[name]) for point in points if name in point.rates]
        axes.plot(*zip(*measured, strict=True), marker="o", label=name)
    axes.set_xticks(places, [str(value) for value in places])
    axes.minorticks_off()
    axes.legend()
