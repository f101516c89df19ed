"""`trierarch gateway`: the OpenAI API in front of a Triton that runs already."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trierarch.orchestrator.gateway.gateway_config import (
    DEFAULT_MAX_BODY_BYTES,
    DEFAULT_MAX_OPEN,
    DEFAULT_MODEL,
    DEFAULT_PORT,
)

if TYPE_CHECKING:
    from trierarch.orchestrator.gateway.gateway_server import GatewayServer

TRITON = "The Triton behind it"
KEYS = "Who may ask"
BOUNDS = "Bounds"
ADAPTERS = "Adapters that clients load"
WATCH_SECONDS = 0.25


def gateway(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = DEFAULT_PORT,
    grpc: Annotated[
        str, typer.Option(metavar="HOST:PORT", rich_help_panel=TRITON, help="Its gRPC.")
    ] = "localhost:8001",
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT", rich_help_panel=TRITON, help="Its HTTP, asked whether it is ready.")
    ] = "localhost:8000",
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", rich_help_panel=TRITON, help="Its metrics, shown beside ours.")
    ] = "localhost:8002",
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=TRITON,
            help="A model that holds an executor. Repeatable.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    served_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What clients call the model. Repeatable.", show_default="the engine's name"),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=KEYS, help="Keys, one a line; without any, everybody may ask."),
    ] = None,
    api_keys_variable: Annotated[
        str | None,
        typer.Option(metavar="NAME", rich_help_panel=KEYS, help="Environment variable with keys, by commas."),
    ] = None,
    max_open: Annotated[
        int, typer.Option(rich_help_panel=BOUNDS, min=1, help="Requests that wait or run at once.")
    ] = DEFAULT_MAX_OPEN,
    max_open_per_key: Annotated[
        int | None, typer.Option(rich_help_panel=BOUNDS, min=1, help="The same of each key.")
    ] = None,
    max_body_bytes: Annotated[
        int, typer.Option(rich_help_panel=BOUNDS, min=1, help="Bytes of a request's body.")
    ] = DEFAULT_MAX_BODY_BYTES,
    drain_timeout: Annotated[
        int,
        typer.Option(
            metavar="SECONDS", rich_help_panel=BOUNDS, min=0, help="Time that open requests get to finish at the end."
        ),
    ] = 30,
    adapter_store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", rich_help_panel=ADAPTERS, help="Adapters that may be loaded, by name; none may without it."
        ),
    ] = None,
    adapter_directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", rich_help_panel=ADAPTERS, help="One of the server's --adapters: there they go."),
    ] = None,
) -> None:
    """Serve the OpenAI API in front of a running Triton, until Ctrl-C or SIGTERM.

    `trierarch serve` starts one by itself; this is for a Triton elsewhere. At the end new requests are refused and open
    ones finish; a second Ctrl-C ends them at once.
    """
    from trierarch.orchestrator.console import OUT, say
    from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
    from trierarch.orchestrator.gateway.gateway_server import GatewayServer
    from trierarch.orchestrator.gateway.source import always_on
    from trierarch.orchestrator.gateway.upstream import Endpoints

    config = GatewayConfig(
        host=host,
        port=port,
        api_keys_file=api_keys,
        api_keys_variable=api_keys_variable,
        max_open=max_open,
        max_open_per_key=max_open_per_key,
        max_body_bytes=max_body_bytes,
        adapter_store=adapter_store,
        adapter_directory=adapter_directory,
    )
    models, names = model or [DEFAULT_MODEL], served_name or []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    endpoints = Endpoints(grpc=grpc, http=http, metrics=metrics)
    with GatewayServer(config, lambda: always_on(endpoints, models, names)) as server:
        OUT.print(server.url, soft_wrap=True)
        say("serving; Ctrl-C stops")
        _serve(server, drain_timeout)
    say("stopped")


def _serve(server: GatewayServer, drain_timeout: int) -> None:
    from trierarch.orchestrator.console import say, warn

    try:
        while server.is_running:
            time.sleep(WATCH_SECONDS)
        raise typer.Exit(1)
    except KeyboardInterrupt:
        say(f"stopping: open requests have {drain_timeout} s to finish (Ctrl-C again ends them at once)")
        server.refuse_new()
        if not server.wait_idle(drain_timeout):
            warn(f"requests were still open after {drain_timeout} s, and were cut")
            raise typer.Exit(1) from None
