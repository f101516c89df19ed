"""`trierarch adapters`: LoRA adapters, checked against an engine, packed for it, listed and removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from trierarch.builder.adapter import AdapterTensors
    from trierarch.builder.errors import AdapterError

adapters = typer.Typer(no_args_is_help=True, help="Check, pack, list and remove LoRA adapters.")

Engine = Annotated[Path, typer.Argument(help="The engine's directory.")]
Sources = Annotated[
    list[Path], typer.Argument(help="Directories that PEFT saved an adapter in, or packed files.", metavar="SOURCE...")
]


@adapters.command()
def check(engine: Engine, sources: Sources) -> None:
    """Say of each adapter whether the engine can serve it, and why not.

    Everything is read, and nothing written. Fails when one does not fit.
    """
    from rich.text import Text

    from trierarch.orchestrator.console import OUT
    from trierarch.orchestrator.sizes import format_size

    table = _table("adapter", "rank", "adapts", "DoRA", "size", "digest", "verdict")
    has_failed = False
    for source, packed in _packed(engine, sources, "check"):
        if isinstance(packed, Exception):
            has_failed = True
            table.add_row(source.resolve().name, *["–"] * 5, Text(str(packed), style="red"))
            continue
        manifest = packed.manifest
        table.add_row(
            source.resolve().name,
            str(manifest.rank),
            " ".join(manifest.pieces),
            "yes" if manifest.is_dora else "no",
            format_size(packed.num_bytes),
            manifest.digest[:12],
            Text("fits", style="green"),
        )
    OUT.print(table)
    if has_failed:
        raise typer.Exit(1)


@adapters.command()
def pack(
    engine: Engine,
    sources: Sources,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where NAME.safetensors goes; made if it is not there.")],
    name: Annotated[
        str | None, typer.Option(help="Of the one adapter there is.", show_default="the name of its directory")
    ] = None,
) -> None:
    """Pack adapters for an engine, which loads them faster so than from PEFT's files.

    Each becomes DIR/NAME.safetensors, whole or not at all. One that is there is replaced, and a server with that directory takes the
    new version for requests that come later. Fails when one does not fit; the others are packed.
    """
    from trierarch.builder.adapter_directory import packed_path
    from trierarch.builder.errors import ConfigError
    from trierarch.builder.packed_adapter import write_packed
    from trierarch.orchestrator.console import ERR, OUT, report

    if name is not None and len(sources) > 1:
        raise ConfigError(
            f"--name is {name!r}, and there are {len(sources)} adapters; leave it out, or pack one at a time"
        )
    _refuse_engine(output)
    names = [valid_name(name or _name_of(source)) for source in sources]
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise ConfigError(f"{twice!r} is the name of more than one adapter; pack one at a time, with --name")
    _make(output)
    has_failed = False
    for chosen, (_, packed) in zip(names, _packed(engine, sources, "pack"), strict=True):
        if isinstance(packed, Exception):
            has_failed = True
            report(packed)
            continue
        write_packed(packed, packed_path(output, chosen))
        OUT.print(f"[bold cyan]{chosen}[/]: {packed.manifest.digest}", soft_wrap=True)
    if has_failed:
        raise typer.Exit(1)
    ERR.print(f"\nlook at them with: [bold]trierarch adapters list {output}[/]", soft_wrap=True)


@adapters.command(name="list")
def list_(
    places: Annotated[
        list[Path], typer.Argument(help="Directories of adapters, or engines, which bring theirs.", metavar="DIR...")
    ],
) -> None:
    """Show the adapters that are in a directory, or that an engine brings along."""
    from rich.text import Text

    from trierarch.builder.adapter_directory import adapters_in
    from trierarch.builder.errors import AdapterError
    from trierarch.builder.packed_adapter import read_manifest
    from trierarch.orchestrator.console import OUT
    from trierarch.orchestrator.sizes import format_size

    table = _table("adapter", "rank", "adapts", "DoRA", "dtype", "size", "digest", "from")
    for place in places:
        for name, path in adapters_in(place):
            if path.is_dir():
                table.add_row(name, *["–"] * 6, Text(f"{path}: PEFT's files, packed when they are loaded", style="dim"))
                continue
            try:
                manifest = read_manifest(path)
            except AdapterError as error:
                table.add_row(name, *["–"] * 6, Text(str(error), style="red"))
                continue
            table.add_row(
                name,
                str(manifest.rank),
                " ".join(manifest.pieces),
                "yes" if manifest.is_dora else "no",
                manifest.dtype.value,
                format_size(path.stat().st_size),
                manifest.digest[:12],
                Text(manifest.source),
            )
    OUT.print(table)


@adapters.command()
def remove(
    directory: Annotated[Path, typer.Argument(help="A directory of adapters.", metavar="DIR")],
    names: Annotated[list[str], typer.Argument(help="Names of packed adapters.", metavar="NAME...")],
) -> None:
    """Remove packed adapters. A server with that directory refuses them from then on; requests that run go on."""
    from trierarch.builder.adapter_directory import packed_path
    from trierarch.builder.errors import AdapterError, ResourceError
    from trierarch.orchestrator.console import say

    _refuse_engine(directory)
    paths = [packed_path(directory, valid_name(name)) for name in names]
    for path in paths:
        if not path.is_file():
            raise AdapterError(
                f"{path} is no packed adapter, and nothing was removed; see what is there with: trierarch adapters list "
                f"{directory}"
            )
    for path in paths:
        try:
            path.unlink()
        except OSError as error:
            raise ResourceError(f"{path} cannot be removed ({error.strerror or error})") from error
        say(f"removed {path}")


def _packed(engine: Path, sources: list[Path], stage: str) -> Iterator[tuple[Path, AdapterTensors | AdapterError]]:
    """Each source, packed for the engine, or why it cannot be; with a progress bar where there are many."""
    from contextlib import nullcontext

    from trierarch.builder.adapter_source import read_adapter
    from trierarch.builder.errors import AdapterError
    from trierarch.builder.progress import NoProgress
    from trierarch.builder.verify import verify
    from trierarch.orchestrator.build_progress import RichProgress
    from trierarch.orchestrator.console import ERR

    manifest = verify(engine)
    with RichProgress(ERR) if len(sources) > 1 else nullcontext(NoProgress()) as progress:
        progress.stage(stage, len(sources), "adapters")
        for source in sources:
            try:
                packed: AdapterTensors | AdapterError = read_adapter(source, engine, manifest)
            except AdapterError as error:
                packed = error
            progress.advance(1)
            yield source, packed


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in ("rank", "size") else "left", overflow="fold")
    return table


def _name_of(source: Path) -> str:
    """A directory's name, or a packed file's without its ending."""
    return source.resolve().name if source.is_dir() else source.stem


def valid_name(name: str) -> str:
    """`name`, if an adapter may be named so.

    Raises:
        ConfigError: it may not.
    """
    import re

    from trierarch.builder.adapter import NAME_PATTERN
    from trierarch.builder.errors import ConfigError

    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"{name!r} is no name for an adapter: give one of letters, digits, '.', '_' and '-', at most 128, with --name"
        )
    return name


def _make(directory: Path) -> None:
    from trierarch.builder.errors import ResourceError

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{directory} cannot be made ({error.strerror or error}); choose another --output"
        ) from error


def _refuse_engine(directory: Path) -> None:
    """What an engine brings along is among its digests."""
    from trierarch.builder.errors import ConfigError
    from trierarch.builder.manifest import ADAPTERS_NAME, MANIFEST_NAME

    place = directory.resolve()
    if (place / MANIFEST_NAME).exists() or (place.name == ADAPTERS_NAME and (place.parent / MANIFEST_NAME).exists()):
        raise ConfigError(
            f"{directory} is an engine's, and engines do not change; choose another directory and serve it beside, or "
            "build the engine with other --adapter options"
        )
