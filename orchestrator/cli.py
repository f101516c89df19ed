"""The `trierarch` command. Each command has a file of its own in `commands/`; what is heavy is imported inside them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from trierarch.builder.errors import TrierarchError
from trierarch.orchestrator.commands.adapter_models import load, status, unload
from trierarch.orchestrator.commands.adapters import adapters
from trierarch.orchestrator.commands.build import build
from trierarch.orchestrator.commands.compile import compile
from trierarch.orchestrator.commands.compose import compose
from trierarch.orchestrator.commands.dashboard import dashboard
from trierarch.orchestrator.commands.demo import demo
from trierarch.orchestrator.commands.deploy import deploy
from trierarch.orchestrator.commands.doctor import doctor
from trierarch.orchestrator.commands.gateway import gateway
from trierarch.orchestrator.commands.generate import generate
from trierarch.orchestrator.commands.import_ import import_
from trierarch.orchestrator.commands.inspect import inspect
from trierarch.orchestrator.commands.serve import serve
from trierarch.orchestrator.console import report

EPILOG = """\
A first journey:

  trierarch build --model demo --output engines/demo

  trierarch serve engines/demo

  trierarch generate 'Why is the sky blue?' --chat
"""

app = typer.Typer(
    name="trierarch",
    help="Build LLM engines and serve them behind Triton, with TensorRT-LLM's contract.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MAKE = "From a checkpoint to a model repository"
RUN = "Serve and ask"
LOOK = "Look"
SERVED = "As models of a server that runs"

app.command(rich_help_panel=MAKE)(build)
app.command(rich_help_panel=MAKE)(compile)
app.command(rich_help_panel=MAKE)(compose)
app.command("import", rich_help_panel=MAKE)(import_)
for command in (load, unload, status):
    adapters.command(rich_help_panel=SERVED)(command)
app.add_typer(adapters, name="adapters", rich_help_panel=MAKE)
app.command(rich_help_panel=RUN)(serve)
app.command(rich_help_panel=RUN)(gateway)
app.command(rich_help_panel=RUN)(generate)
app.command(rich_help_panel=RUN)(deploy)
app.command(rich_help_panel=LOOK)(inspect)
app.command(rich_help_panel=LOOK)(doctor)
app.command(rich_help_panel=LOOK)(dashboard)
app.command(hidden=True)(demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"trierarch {version('trierarch')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that come before any command; the help text is the app's own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: what cannot be done is told on one line, and a traceback means a bug of ours."""
    try:
        app(arguments)
    except TrierarchError as error:
        sys.exit(report(error))
