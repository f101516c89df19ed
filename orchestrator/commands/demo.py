"""`trierarch demo`, behind `make demo`: the whole journey on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trierarch.builder.manifest import EngineManifest
    from trierarch.orchestrator.client import TextStream
    from trierarch.orchestrator.prompt import Chunk, Figures
    from trierarch.orchestrator.screen import Screen
    from trierarch.orchestrator.triton_server import TritonServer

QUESTION = "What is gravity?"


def demo(
    engine: Annotated[Path, typer.Option(help="Engine to build, unless it is there.")] = Path("engines/smollm2-135m"),
    model: Annotated[str, typer.Option(metavar="SOURCE", help="Checkpoint to build it from.")] = "demo",
    question: Annotated[str, typer.Option(help="What to ask.")] = QUESTION,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 128,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep what was shown as a picture.")] = None,
) -> None:
    """Build the demo engine, serve it on free ports, ask it a question, shut everything down."""
    from trierarch.orchestrator.console import OUT
    from trierarch.orchestrator.ports import Ports
    from trierarch.orchestrator.screen import Screen
    from trierarch.orchestrator.server_config import ServerConfig
    from trierarch.orchestrator.serving import serving

    screen = Screen(OUT)
    _heading(screen, "build", f"trierarch build --model {model} --output {engine}")
    _build(screen, engine, model)
    _heading(screen, "serve", f"trierarch serve {engine}")
    started = time.monotonic()
    config = ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), drain_timeout=5)
    with (
        OUT.status("starting Triton") as status,
        serving(engine, config, lambda waited: status.update(f"starting Triton: {waited:.0f} s")) as server,
    ):
        status.stop()
        _tell_ready(screen, server, time.monotonic() - started)
        _heading(screen, "ask", f"trierarch generate '{question}' --url {server.endpoints.grpc}")
        figures = _ask(screen, server, question, max_tokens)
        server.stop()
    screen.show("", _line(figures))
    if svg is not None:
        screen.save(svg, "make demo")


def _heading(screen: Screen, name: str, command: str) -> None:
    from rich.text import Text

    screen.show(Text.assemble(("\n" + f" {name} ", "bold black on cyan"), (f" $ {command}", "dim")), "")


def _build(screen: Screen, engine: Path, model: str) -> None:
    from trierarch.orchestrator.engine_summary import summary_table

    started = time.monotonic()
    manifest = _usable(engine)
    if manifest is not None:
        screen.show(summary_table(manifest, ("built", f"earlier, at {engine}"), draft=manifest.load_draft(engine)))
        return
    from trierarch.builder.build import build
    from trierarch.builder.config import BuildConfig
    from trierarch.orchestrator.build_progress import RichProgress

    with RichProgress(screen.terminal) as progress:
        manifest = build(BuildConfig(model=model, output=engine, overwrite=engine.exists()), progress)
    screen.show(summary_table(manifest, ("built", f"in {time.monotonic() - started:.1f} s, at {engine}")))


def _usable(engine: Path) -> EngineManifest | None:
    """The engine that is there, unless this version or machine must build it anew."""
    from trierarch.builder.errors import EngineError
    from trierarch.builder.verify import verify

    try:
        return verify(engine)
    except EngineError:
        return None


def _tell_ready(screen: Screen, server: TritonServer, seconds: float) -> None:
    from trierarch.orchestrator.announcement import endpoint_table

    screen.show(endpoint_table(server, ("ready", f"in {seconds:.1f} s")))


def _ask(screen: Screen, server: TritonServer, question: str, max_tokens: int) -> Figures:
    from trierarch.orchestrator.client import TritonClient
    from trierarch.orchestrator.prompt import Prompt, measure

    prompt = Prompt(text=question, max_tokens=max_tokens, chat=True)
    chunks: list[Chunk] = []
    with TritonClient(server.endpoints.grpc).stream(prompt) as answer:
        screen.stream(_texts(answer, chunks), "bold")
        return measure(answer.started, chunks)


def _texts(answer: TextStream, chunks: list[Chunk]) -> Iterator[str]:
    for chunk in answer:
        chunks.append(chunk)
        yield chunk.text


def _line(figures: Figures) -> str:
    return (
        f"[bold cyan]{figures.tokens_per_second:.1f} tokens/s[/], first text after "
        f"[bold cyan]{figures.ttft * 1000:.0f} ms[/] "
        f"[dim]({figures.num_input_tokens} tokens in, {figures.num_output_tokens} out; Triton is shut down)[/]"
    )
