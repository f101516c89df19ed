"""`trierarch serve`: an engine or a repository behind a Triton that is kept alive."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trierarch.orchestrator.gateway.gateway_config import DEFAULT_PORT

if TYPE_CHECKING:
    from trierarch.orchestrator.announcement import Announced
    from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
    from trierarch.orchestrator.gateway.gateway_server import GatewayServer
    from trierarch.orchestrator.server_config import LogLevel, ModelControl
    from trierarch.orchestrator.sleep.service import SleepConfig
    from trierarch.orchestrator.triton_server import TritonServer

GATEWAY = "The OpenAI gateway"
LAST_BYTES_SECONDS = 2.0
"""For clients to read what is left when Triton has answered everything."""


def serve(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="An engine, or a composed model repository. Several take turns with --idle-timeout."
        ),
    ],
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
    kv_host_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Host memory for KV blocks that the cache has no room for.",
            show_default="as the repository says",
        ),
    ] = None,
    kv_disk_directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where those go next, of this server alone.", show_default="as the repository says"
        ),
    ] = None,
    kv_disk_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With --kv-disk-directory: of files there.", show_default="the backend's"),
    ] = None,
    model_control: Annotated[
        str,
        typer.Option(metavar="MODE", help="explicit lets clients load and unload models; none does not."),
    ] = "none",
    idle_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Stop Triton when no request came for so long, such as 60s or 5m; the next one starts it and waits.",
            show_default="never",
        ),
    ] = None,
    wake_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="With --idle-timeout: how long a request waits for Triton.")
    ] = "60s",
    max_held_requests: Annotated[
        int, typer.Option(metavar="N", help="With --idle-timeout: how many wait at once; one more is refused.")
    ] = 256,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With several PATHs: memory for those that are awake; the least recently used one goes to sleep.",
            show_default="what is free",
        ),
    ] = None,
    gateway: Annotated[
        bool, typer.Option("--gateway/--no-gateway", rich_help_panel=GATEWAY, help="Serve the OpenAI API as well.")
    ] = True,
    gateway_port: Annotated[
        int, typer.Option(rich_help_panel=GATEWAY, help="Port of the OpenAI API; 0 picks a free one.")
    ] = DEFAULT_PORT,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=GATEWAY, help="Keys of its clients, one a line; none lets everybody in."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Once ready, print the endpoints as one line of JSON.")] = False,
) -> None:
    """Serve an engine or a model repository with Triton, until Ctrl-C or SIGTERM.

    An engine is composed into a repository first. The server is brought back when it, or the process that holds the
    model, dies. At the end no new request is taken and open streams finish; a second Ctrl-C ends them at once.

    With --idle-timeout a small process holds the ports. It stops Triton when nobody asks, and starts it at the next
    request, which waits and is answered.
    """
    from trierarch.builder.errors import ConfigError
    from trierarch.orchestrator.console import ERR, say, warn
    from trierarch.orchestrator.kv_tiers import KvTiers
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
    tiers = KvTiers.parse(kv_host_bytes, kv_disk_directory, kv_disk_bytes)
    openai = _gateway_config(host, gateway_port, api_keys) if gateway else None
    if idle_timeout is not None:
        # Only here: a server of its own, for three protocols.
        from trierarch.orchestrator.durations import parse_duration
        from trierarch.orchestrator.sizes import parse_size
        from trierarch.orchestrator.sleep.rest import Rest
        from trierarch.orchestrator.sleep.service import SleepConfig

        rest = Rest(
            idle_timeout=parse_duration(idle_timeout),
            wake_timeout=parse_duration(wake_timeout),
            max_held_requests=max_held_requests,
        )
        budget = None if memory_budget is None else parse_size(memory_budget)
        _serve_sleeping(SleepConfig(tuple(paths), config, rest, tuple(adapters or ()), budget, tiers, openai), json)
        return
    if len(paths) > 1:
        raise ConfigError(f"PATH is {str(paths[1])!r}, the second one: several are served with --idle-timeout")
    # A container is stopped with SIGTERM: treat it as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        ERR.status("starting Triton") as status,
        serving(
            paths[0], config, lambda waited: status.update(f"starting Triton: {waited:.0f} s"), adapters or (), tiers
        ) as server,
        _gateway(server, openai) as front,
    ):
        status.stop()
        _announce(server, None if front is None else front.url, json)
        try:
            Supervisor(server, warn).watch()
        except KeyboardInterrupt:
            say(f"stopping: open streams have {drain_timeout} s to finish (Ctrl-C again ends them at once)")
            if front is not None:
                front.refuse_new()  # what is open in it is open in Triton, which drains
            has_drained = server.stop()
            if front is not None:
                front.wait_idle(LAST_BYTES_SECONDS)
            if not has_drained:
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


def _serve_sleeping(config: SleepConfig, as_json: bool) -> None:
    from trierarch.orchestrator.console import say, warn
    from trierarch.orchestrator.sleep.service import serve_sleeping

    if not serve_sleeping(config, lambda front, openai: _announce(front, openai, as_json)):
        warn(f"streams were still open after {config.server.drain_timeout} s, and were cut")
        raise typer.Exit(1)
    say("stopped")


def _gateway_config(host: str, port: int, api_keys: Path | None) -> GatewayConfig:
    """Of the gateway; its port is tried now, before a model is loaded for nothing."""
    from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
    from trierarch.orchestrator.ports import reserve

    return GatewayConfig(host=host, port=reserve("gateway", host, port), api_keys_file=api_keys)


def _gateway(server: TritonServer, config: GatewayConfig | None) -> AbstractContextManager[GatewayServer | None]:
    """The OpenAI API in front of `server`; None where it is not wanted."""
    if config is None:
        return nullcontext()
    from trierarch.orchestrator.gateway.gateway_server import GatewayServer
    from trierarch.orchestrator.gateway.source import always_on
    from trierarch.orchestrator.gateway.upstream import Endpoints

    return GatewayServer(config, lambda: always_on(Endpoints.of(server.endpoints)))


def _announce(server: Announced, url: str | None, as_json: bool) -> None:
    from trierarch.orchestrator.announcement import commands_to_paste, endpoint_table, endpoints_json
    from trierarch.orchestrator.console import OUT, say

    if as_json:
        typer.echo(endpoints_json(server, url))
        return
    openai = [] if url is None else [("OpenAI", f"{url}/v1")]
    OUT.print(endpoint_table(server, *openai, ("log", str(server.log))))
    OUT.print("\n[dim]ask it something:[/]")
    for command in commands_to_paste(server, url):
        OUT.print(f"  {command}", soft_wrap=True, markup=False)
    say("serving; Ctrl-C stops")
