"""`trierarch generate`: one prompt through a running server."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trierarch.orchestrator.client import TextStream
    from trierarch.orchestrator.prompt import Chunk, Figures

SAMPLING = "Sampling (nothing given: greedy)"
SPECULATION = "Speculation (changes the pace, never the answer)"


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; '-' reads standard input.")],
    url: Annotated[str, typer.Option(help="The server's gRPC address.")] = "localhost:8001",
    model: Annotated[str, typer.Option(help="Model to ask.")] = "tensorrt_llm",
    adapter: Annotated[
        str, typer.Option(metavar="NAME", help="LoRA adapter that answers.", show_default="the base model")
    ] = "",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 256,
    chat: Annotated[
        bool,
        typer.Option("--chat/--raw", help="Put the engine's chat template around the prompt, or send it as it is."),
    ] = True,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text. May be repeated.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Answers to draw.")] = 1,
    temperature: Annotated[float | None, typer.Option(rich_help_panel=SAMPLING, help="0 is greedy.")] = None,
    top_k: Annotated[
        int | None, typer.Option(rich_help_panel=SAMPLING, help="Draw from the k most likely tokens; 0 from all.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(rich_help_panel=SAMPLING, help="Draw from the likeliest tokens that sum to p.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(rich_help_panel=SAMPLING, help="Drop tokens below this share of the likeliest.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(rich_help_panel=SAMPLING, help="The same seed draws the same text.")
    ] = None,
    max_draft_tokens: Annotated[
        int | None,
        typer.Option(rich_help_panel=SPECULATION, help="Guess at most this many tokens ahead; 0 guesses nothing."),
    ] = None,
    drafter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SPECULATION,
            help="Let only this drafter of the engine guess. May be repeated.",
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it comes.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the answers and figures as one JSON object.")] = False,
) -> None:
    """Ask a running server, and print its answer as it comes.

    The text goes to standard output, the figures to standard error. Ctrl-C stops the work on the server too.
    """
    import sys

    from trierarch.orchestrator.client import TritonClient
    from trierarch.orchestrator.prompt import Prompt, measure

    asked = Prompt(
        text=sys.stdin.read() if prompt == "-" else prompt,
        max_tokens=max_tokens,
        chat=chat,
        adapter=adapter,
        stop=tuple(stop or ()),
        n=n,
        max_draft_tokens=max_draft_tokens,
        drafters=tuple(drafter or ()),
        **_sampling(temperature, top_k, top_p, min_p, seed, n),
    )
    with TritonClient(url, model).stream(asked, stream=stream) as answers:
        chunks = list(answers) if json else _print(answers, n)
    figures = measure(answers.started, chunks)
    if json:
        _print_json(chunks, figures)
    else:
        print_figures(figures)


def _sampling(
    temperature: float | None, top_k: int | None, top_p: float | None, min_p: float | None, seed: int | None, n: int
) -> dict[str, Any]:
    """Once any of them is given, all of them mean what they say: the contract would go on taking top_k as 1."""
    if n == 1 and all(value is None for value in (temperature, top_k, top_p, min_p, seed)):
        return {}
    return {
        "temperature": 1.0 if temperature is None else temperature,
        "top_k": 0 if top_k is None else top_k,
        "top_p": 1.0 if top_p is None else top_p,
        "min_p": min_p,
        "seed": seed,
    }


def _print(answers: TextStream, n: int) -> list[Chunk]:
    """Print one answer as it comes; several, which come mixed, one after another at their ends."""
    chunks: list[Chunk] = []
    texts: dict[int, str] = {}
    for chunk in answers:
        chunks.append(chunk)
        if n == 1:
            typer.echo(chunk.text, nl=False)
            continue
        texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
        if chunk.finish_reason:
            typer.echo(f"[{chunk.index}] {texts[chunk.index]}")
    if n == 1:
        typer.echo()
    return chunks


def _print_json(chunks: list[Chunk], figures: Figures) -> None:
    import json

    from trierarch.orchestrator.prompt import join

    answers = [asdict(answer) for answer in join(chunks)]
    shown = {"answers": answers, "figures": asdict(figures) | {"tokens_per_second": figures.tokens_per_second}}
    typer.echo(json.dumps(shown, ensure_ascii=False, indent=2))


def print_figures(figures: Figures) -> None:
    """One line on standard error."""
    from trierarch.orchestrator.console import ERR

    ERR.print(
        f"[dim]{figures.num_input_tokens} tokens in, {figures.num_output_tokens} out · "
        f"first text after {figures.ttft * 1000:.0f} ms · {figures.tokens_per_second:.1f} tokens/s[/]",
        soft_wrap=True,
    )
