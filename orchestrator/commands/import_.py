"""`trierarch import`: a repository of TensorRT-LLM's backend becomes one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from trierarch.orchestrator.importing.plan import ImportPlan


def import_(
    repository: Annotated[Path, typer.Argument(metavar="DIR", help="A model repository of tensorrtllm_backend.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the repository goes, whole or not at all.")],
    engine: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where its engine goes.", show_default="OUTPUT-engine")
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the spec goes that build, compose and deploy go on from.",
            show_default="OUTPUT-trierarch.yaml",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The checkpoint: a directory, a GGUF file, a hub id or demo.",
            show_default="tokenizer_dir, where a checkpoint lies there",
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would become of it, and change nothing.")] = False,
    spec_only: Annotated[
        bool, typer.Option("--spec-only", help="Write the spec; build and compose nothing yet.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the engine and the spec that are there.")
    ] = False,
) -> None:
    """Import a model repository of TensorRT-LLM's backend.

    Its filled-in config.pbtxt files are read; what has a counterpart is carried over into an engine, which is built from
    the model's checkpoint, and a repository over it. A table tells of each setting what became of it, and why; a spec says
    the same to trierarch build, compose and deploy.
    """
    from trierarch.builder.errors import ConfigError
    from trierarch.ensembles.compose import compose
    from trierarch.orchestrator.composition_spec import CompositionSpec
    from trierarch.orchestrator.console import ERR, OUT, say
    from trierarch.orchestrator.importing.plan import plan_import

    planned = plan_import(repository, model)
    OUT.print(_table(planned))
    if plan:
        return
    if planned.model is None:
        raise ConfigError(
            "a repository of TensorRT-LLM's backend holds no weights that could be built from; name the checkpoint with "
            "--model" + (f" ({' and '.join(planned.hints)})" if planned.hints else "")
        )
    spec = spec or output.with_name(output.name + "-trierarch.yaml")
    if spec.exists() and not overwrite:
        raise ConfigError(f"--spec is {str(spec)!r}: there is a file already; name another, or --overwrite it")
    from trierarch.builder.build import build
    from trierarch.orchestrator.build_progress import RichProgress
    from trierarch.orchestrator.commands.build import build_config
    from trierarch.orchestrator.importing.written_spec import write_import

    engine = (engine or output.with_name(output.name + "-engine")).resolve()
    asked = CompositionSpec(engine, output.resolve(), planned.compose)
    fields = _fields(planned, planned.model)
    config = build_config(model=planned.model, output=engine, overwrite=overwrite, **fields)
    write_import(spec, repository.resolve(), planned, config, asked)
    if spec_only:
        say(f"go on with: trierarch build --spec {spec}; trierarch compose --spec {spec}")
        return
    with RichProgress(ERR) as progress:
        build(config, progress)
    composition = compose(asked.engine, asked.output, asked.options)
    OUT.print(f"[bold cyan]{output}[/]: {', '.join(composition.models)}", soft_wrap=True)
    say(f"serve it with: trierarch serve {output}")


def _fields(planned: ImportPlan, model: str) -> dict[str, Any]:
    """The fields of BuildConfig, with the bytes that the KV cache's tokens take."""
    fields = dict(planned.build)
    if planned.kv_tokens is None:
        return fields
    from trierarch.builder.decoder import read_decoder
    from trierarch.builder.machine import default_dtype
    from trierarch.builder.manifest import KvCache, KvType
    from trierarch.builder.progress import NoProgress
    from trierarch.builder.source import open_checkpoint

    decoder = read_decoder(open_checkpoint(model, NoProgress()).config, None)
    block_size: int = KvCache.model_fields["block_size"].default
    num_tokens = -(-planned.kv_tokens // block_size) * block_size
    fields["kv_cache_bytes"] = num_tokens * decoder.architecture.kv_bytes_per_token(KvType(default_dtype()))
    # One sequence may be as long as the cache allows, and no longer.
    fields["max_seq_len"] = min(fields.get("max_seq_len") or decoder.max_seq_len, num_tokens)
    return fields


def _table(planned: ImportPlan) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold cyan")
    for heading in ("model", "setting", "value", "", "into what, or why"):
        table.add_column(heading)
    for entry in planned.entries:
        cells = (entry.model, entry.name, entry.value, entry.fate.value, entry.why)
        table.add_row(*(Text(cell) for cell in cells))
    return table
