"""`python -m trierarch.benchmarks`: list the benchmarks, run one, or install rivals."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer
from rich.console import Console

from trierarch.benchmarks import registry
from trierarch.benchmarks.paths import OUT
from trierarch.benchmarks.registry import BENCHMARKS, DEFAULT_SEED, Benchmark, Options
from trierarch.benchmarks.report import Report
from trierarch.builder.errors import TrierarchError
from trierarch.builder.manifest import DType

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as shells have it."""
LOG_WIDTH: Final = 140
"""Of tables that go to a file or a pipe."""

app = typer.Typer(
    name="benchmarks", help="Measure Trierarch beside its rivals on this machine.", pretty_exceptions_enable=False
)
out = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
err = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Tell what is going on."""
    err.print(f"==> {message}", style="dim", markup=False)


@app.callback(invoke_without_command=True)
def listing(context: typer.Context) -> None:
    """List the benchmarks, or run the one named."""
    if context.invoked_subcommand is None:
        width = max(map(len, BENCHMARKS))
        for benchmark in BENCHMARKS.values():
            out.print(f"[bold]{benchmark.name:{width}}[/]  {benchmark.summary}", soft_wrap=True)


@app.command()
def install(
    names: Annotated[
        list[str] | None, typer.Argument(help="Rivals to bring here; without names they are listed.")
    ] = None,
) -> None:
    """Install rivals, each in an environment of its own, from the one demo checkpoint."""
    from trierarch.benchmarks.rivals.catalog import RIVALS, named

    for rival in named(names or []):
        rival.ensure(say)
    width = max(map(len, RIVALS))
    for rival in RIVALS.values():
        out.print(f"[bold]{rival.name:{width}}[/]  {'installed' if rival.is_installed else '–':9}  {rival.summary}")


def _command(benchmark: Benchmark) -> None:
    @app.command(name=benchmark.name, help=benchmark.summary)
    def run(
        quick: Annotated[bool, typer.Option("--quick", help="Try the harness; the figures mean nothing.")] = False,
        rivals: Annotated[
            str | None, typer.Option(metavar="A,B|none", help="Rivals to measure; all that are installed by default.")
        ] = None,
        seed: Annotated[int, typer.Option(help="Of every random prompt.")] = DEFAULT_SEED,
        dtype: Annotated[
            DType,
            typer.Option(help="Of our unquantised engines; a machine without bfloat16 is at its best in float32."),
        ] = DType.BFLOAT16,
        streams: Annotated[
            str | None,
            typer.Option(metavar="N,M", help="Numbers of concurrent streams in place of the benchmark's own."),
        ] = None,
        device: Annotated[str, typer.Option(metavar="cuda|cpu", help="Of gpu; cpu only with --quick.")] = "cuda",
        parts: Annotated[
            str | None, typer.Option(metavar="A,B", help="Of gpu, what to measure; all by default.")
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    ) -> None:
        from trierarch.benchmarks.table import show

        options = Options(
            is_quick=quick,
            rivals=listed_names(rivals),
            seed=seed,
            streams=stream_counts(streams),
            dtype=dtype,
            device=device,
            parts=listed_names(parts) or (),
            say=say,
        )
        report = _grow(benchmark, options)
        if report is None:
            raise typer.Exit(INTERRUPTED)
        if json:
            typer.echo(report.to_json(), nl=False)
        else:
            show(report, out)
        say(f"written to {report.path(OUT)}")
        if not report.is_complete:
            raise typer.Exit(INTERRUPTED)


def _grow(benchmark: Benchmark, options: Options) -> Report | None:
    """Run and write after each figure: the last report, which Ctrl-C leaves incomplete; None if there is none yet."""
    report: Report | None = None
    try:
        for report in benchmark.run(options):
            report.write(OUT)
    except KeyboardInterrupt:
        say("interrupted")
    return report


def listed_names(value: str | None) -> tuple[str, ...] | None:
    """The names in a comma-separated list; `none` is none of them, and None is where there was no list."""
    if value is None:
        return None
    return tuple(name for name in (part.strip() for part in value.split(",")) if name and name != "none")


def stream_counts(value: str | None) -> tuple[int, ...]:
    """The numbers in a comma-separated list, ascending; None is none.

    Raises:
        BadParameter: one is no positive number.
    """
    try:
        counts = sorted({int(part) for part in value.split(",")}) if value else []
    except ValueError:
        counts = [0]
    if counts and counts[0] < 1:
        raise typer.BadParameter(f"--streams is {value!r}: give positive numbers, such as 1,8,64")
    return tuple(counts)


for _benchmark in registry.BENCHMARKS.values():
    _command(_benchmark)


def main() -> None:
    """What cannot be done is told on one line."""
    try:
        app()
    except TrierarchError as error:
        err.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
