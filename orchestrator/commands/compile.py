"""`trierarch compile`: a checkpoint for TensorRT-LLM becomes its TensorRT engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def compile(
    engine: Annotated[Path, typer.Argument(help="An engine's directory, built with --target tensorrt_llm.")],
    json: Annotated[bool, typer.Option("--json", help="Print the engine's manifest as JSON.")] = False,
) -> None:
    """Compile an engine for TensorRT-LLM 1.0 to 1.2, on the machine whose GPUs will run it.

    `trierarch build` does it by itself where TensorRT-LLM is installed. An engine that was compiled elsewhere is compiled
    again; until that has succeeded it stays as it is.
    """
    from trierarch.builder.tensorrt_llm.compile import compile_engine
    from trierarch.builder.verify import verify
    from trierarch.orchestrator.build_progress import RichProgress
    from trierarch.orchestrator.console import ERR, OUT
    from trierarch.orchestrator.engine_summary import summary_table

    started = time.monotonic()
    with RichProgress(ERR) as progress:
        manifest = compile_engine(engine, progress)
    verify(engine)
    if json:
        OUT.out(manifest.to_json(), end="")
        return
    more = (("compiled in", f"{time.monotonic() - started:.1f} s"), ("at", str(engine)))
    OUT.print(summary_table(manifest, *more, draft=manifest.load_draft(engine)))
    ERR.print(f"\nserve it with: [bold]trierarch serve {engine}[/]", soft_wrap=True)
