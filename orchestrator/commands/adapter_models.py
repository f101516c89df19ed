"""`trierarch adapters load`, `unload` and `status`: adapters as models of a server that runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trierarch.orchestrator.model_control import ModelControlClient

Name = Annotated[str, typer.Argument(help="The adapter's name.")]
Repository = Annotated[Path, typer.Option(metavar="DIR", help="The model repository that is served.")]
Url = Annotated[str, typer.Option(help="The server's HTTP address.")]
DEFAULT_URL = "http://localhost:8000"


def load(
    name: Name,
    repository: Repository,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="A directory that PEFT saved, or a packed file.",
            show_default="the adapter that is registered under that name",
        ),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Make an adapter a model of a running server, which has to run with --model-control explicit.

    It is packed into the first directory of adapters that the repository names, and a version that is there is replaced.
    Requests that name the adapter otherwise find it there as well.
    """
    from trierarch.builder.adapter_directory import packed_path
    from trierarch.builder.adapter_source import read_adapter
    from trierarch.builder.errors import ConfigError, TrierarchError
    from trierarch.builder.packed_adapter import write_packed
    from trierarch.builder.verify import verify
    from trierarch.ensembles.adapter_model import adapter_directories, add_adapter_model, remove_adapter_model
    from trierarch.ensembles.model_config import VERSION
    from trierarch.orchestrator.commands.adapters import valid_name
    from trierarch.orchestrator.console import say
    from trierarch.python_backend.triton.contract import Role

    valid_name(name)
    if source is not None:
        directories = adapter_directories(repository)
        if not directories:
            raise ConfigError(f"{repository} names no directory of adapters; compose it with --adapters DIR")
        engine = repository / Role.TENSORRT_LLM / VERSION / "engine"
        packed = read_adapter(source, engine, verify(engine))
        write_packed(packed, packed_path(directories[0], name))
        say(f"packed into {directories[0]}")
    is_new = add_adapter_model(repository, name)
    try:
        _server(url).load(name)
    except TrierarchError:
        if is_new:
            remove_adapter_model(repository, name)  # or the server would not start with it the next time
        raise
    say(f"model {name} is ready")


def unload(
    name: Name,
    repository: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Take the model out of this repository, too: it does not come back at a start."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Take the model of an adapter out of a running server once its open requests are answered.

    The adapter stays where it is, and requests to other models may go on to name it.
    """
    from trierarch.ensembles.adapter_model import remove_adapter_model
    from trierarch.orchestrator.commands.adapters import valid_name
    from trierarch.orchestrator.console import say

    valid_name(name)
    _server(url).unload(name)
    if repository is not None:
        remove_adapter_model(repository, name)
    say(f"model {name} is unloaded")


def status(url: Url = DEFAULT_URL) -> None:
    """Show the models of a running server that serve adapters, and those that failed to load."""
    from rich.table import Table
    from rich.text import Text

    from trierarch.orchestrator.console import OUT

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("model", "state", "why"):
        table.add_column(column, overflow="fold")
    for model in _server(url).adapter_models():
        colour = "green" if model.state == "READY" else "red"
        table.add_row(model.name, Text(model.state, style=colour), Text(model.reason))
    OUT.print(table)


def _server(url: str) -> ModelControlClient:
    from trierarch.orchestrator.model_control import ModelControlClient

    return ModelControlClient(url)
