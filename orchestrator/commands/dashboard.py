"""`trierarch dashboard`: what Grafana shows of a server, as JSON to import."""

from __future__ import annotations

from typing import Annotated

import typer


def dashboard(
    job: Annotated[str, typer.Option(metavar="NAME", help="What Prometheus calls the server that it scrapes.")] = (
        "trierarch"
    ),
) -> None:
    """Print a Grafana dashboard of what trierarch serve runs: load, latency, and with --idle-timeout what sleep saves and costs.

    For Prometheus to scrape the metrics page, or the gateway's /metrics, which has the same. On Kubernetes, trierarch deploy
    writes a dashboard for each service.
    """
    import json

    from trierarch.orchestrator.serve_dashboard import serve_dashboard

    typer.echo(json.dumps(serve_dashboard(job), indent=1, sort_keys=True))
