"""`trierarch serve`: an engine or a repository behind a Triton that is kept alive."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trierarch.orchestrator.server_config import LogLevel, ModelControl
    from trierarch.orchestrator.triton_server import TritonServer


def serve(
    path: Annotated[Path, typer.Argument(help="An engine, or a composed model repository.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port of HTTP; 0 picks a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC; 0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics page; 0 picks a free one.")] = 8002,
    drain_timeout: Annotated[
        int, typer.Option(metavar="SECONDS", min=0, help="Time that open streams get to finish at the end.")
    ] = 30,
    ready_timeout: Annotated[int, typer.Option(metavar="SECONDS", min=1, help="Time that models get to load.")] = 600,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="Triton's log: error, warning, info or verbose.")
    ] = "info",
    adapters: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A directory of LoRA adapters, looked into at every request. Repeatable."),
    ] = None,
    model_control: Annotated[
        str,
        typer.Option(metavar="MODE", help="explicit lets clients load and unload models; none does not."),
    ] = "none",
    json: Annotated[bool, typer.Option("--json", help="Once ready, print the endpoints as one line of JSON.")] = False,
) -> None:
    """Serve an engine or a model repository with Triton, until Ctrl-C or SIGTERM.

    An engine is composed into a repository first. The server is brought back when it, or the process that holds the
    model, dies. At the end no new request is taken and open streams finish; a second Ctrl-C ends them at once.
    """
    from trierarch.orchestrator.console import ERR, say, warn
    from trierarch.orchestrator.ports import Ports
    from trierarch.orchestrator.server_config import ServerConfig
    from trierarch.orchestrator.serving import serving
    from trierarch.orchestrator.supervisor import Supervisor

    config = ServerConfig(
        host=host,
        ports=Ports(http=http_port, grpc=grpc_port, metrics=metrics_port),
        log_level=_log_level(log_level),
        drain_timeout=drain_timeout,
        ready_timeout=ready_timeout,
        model_control=_model_control(model_control),
    )
    # A container is stopped with SIGTERM: treat it as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        ERR.status("starting Triton") as status,
        serving(
            path, config, lambda waited: status.update(f"starting Triton: {waited:.0f} s"), adapters or ()
        ) as server,
    ):
        status.stop()
        _announce(server, json)
        try:
            Supervisor(server, warn).watch()
        except KeyboardInterrupt:
            say(f"stopping: open streams have {drain_timeout} s to finish (Ctrl-C again ends them at once)")
            if not server.stop():
                warn(f"streams were still open after {drain_timeout} s, and were cut")
                raise typer.Exit(1) from None
    say("stopped")


def _log_level(name: str) -> LogLevel:
    from trierarch.orchestrator.server_config import LogLevel

    if name not in list(LogLevel):
        raise typer.BadParameter(f"{name!r} is none of {', '.join(LogLevel)}", param_hint="--log-level")
    return LogLevel(name)


def _model_control(name: str) -> ModelControl:
    from trierarch.orchestrator.server_config import ModelControl

    if name not in list(ModelControl):
        raise typer.BadParameter(f"{name!r} is none of {', '.join(ModelControl)}", param_hint="--model-control")
    return ModelControl(name)


def _announce(server: TritonServer, as_json: bool) -> None:
    from trierarch.orchestrator.announcement import commands_to_paste, endpoint_table, endpoints_json
    from trierarch.orchestrator.console import OUT, say

    if as_json:
        typer.echo(endpoints_json(server))
        return
    OUT.print(endpoint_table(server, ("log", str(server.log))))
    OUT.print("\n[dim]ask it something:[/]")
    for command in commands_to_paste(server):
        OUT.print(f"  {command}", soft_wrap=True, markup=False)
    say("serving; Ctrl-C stops")
