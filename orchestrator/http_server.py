"""The HTTP server under an ASGI application of ours: uvicorn, set up once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than load balancers keep an idle connection, so that it is they who close it."""


class HttpServer(uvicorn.Server):
    """One that leaves signals to others, and logs to ours."""

    def __init__(
        self,
        application: Any,
        *,
        protocol: str | Callable[..., Any] = "httptools",
        has_date: bool = True,
        close_seconds: int = 0,
    ) -> None:
        """`protocol`: what makes a connection's; `close_seconds`: for answers that are on their way at the end."""
        # It warns of whatever strangers send, and of what is cut at the end; what fails in our own code we log ourselves.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        super().__init__(
            uvicorn.Config(
                application,
                http=protocol,  # type: ignore[arg-type]  # a class is asked for, and called
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # nobody here asks who the client is
                server_header=False,
                date_header=has_date,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=close_seconds,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn."""
        yield
