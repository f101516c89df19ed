"""`trierarch inspect`: what an engine is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    engine: Annotated[Path, typer.Argument(help="An engine's directory.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare the digests.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the manifest, and what follows from it, as JSON.")
    ] = False,
) -> None:
    """Show an engine: shapes, sizes, bytes of KV per token, limits, digests.

    Fails when the engine is incomplete, or foreign to this version or to this machine.
    """
    from trierarch.builder.verify import verify as verify_engine

    manifest = verify_engine(engine, digests=verify)
    draft = manifest.load_draft(engine)
    if json:
        import json as text

        document = manifest.model_dump(mode="json") | {
            "digest": manifest.digest,
            "digests_verified": verify,
            "draft": None if draft is None else draft.model_dump(mode="json"),
        }
        typer.echo(text.dumps(document, indent=2, sort_keys=True))
        return

    from rich.table import Table

    from trierarch.orchestrator.console import OUT
    from trierarch.orchestrator.engine_summary import summary_table
    from trierarch.orchestrator.sizes import format_size

    built_with = f"trierarch {manifest.built_with.trierarch}, torch {manifest.built_with.torch}"
    checked = "sizes and digests" if verify else "sizes (digests too with --verify)"
    more = (("built with", built_with), ("digest", manifest.digest), ("verified", checked))
    OUT.print(summary_table(manifest, *more, draft=draft))
    files = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    files.add_column("file")
    files.add_column("size", justify="right")
    files.add_column("SHA-256", style="dim", overflow="fold")
    for name, file in sorted(manifest.files.items()):
        files.add_row(name, format_size(file.num_bytes), file.sha256)
    OUT.print()
    OUT.print(files)
