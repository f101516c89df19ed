"""`trierarch demo`, behind `make demo`: the whole journey on this machine, as a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

QUESTION = "Why is the sky blue? Answer in two sentences."


def demo(
    engine: Annotated[Path, typer.Option(help="Engine to build, unless it is there.")] = Path("engines/smollm2-135m"),
    question: Annotated[str, typer.Option(help="What to ask.")] = QUESTION,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 128,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep what was shown as a picture.")] = None,
) -> None:
    """Build the demo engine, serve it, ask it a question, and shut everything down."""
    raise NotImplementedError
