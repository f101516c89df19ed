"""A server whose port somebody else took between choosing and listening is not believed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.run_directory import RunDirectory
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.triton_server import PortLost, TritonServer

LISTENS = """
import http.server, socket, sys, threading
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args): pass
ports = {a.split("=")[0]: int(a.split("=")[1]) for a in sys.argv[1:] if a.startswith(("--grpc-port=", "--metrics-port="))}
others = [socket.create_server(("127.0.0.1", port)) for port in ports.values()]
(http_port,) = [int(a.split("=")[1]) for a in sys.argv[1:] if a.startswith("--http-port=")]
http.server.HTTPServer(("127.0.0.1", http_port), Ready).serve_forever()
"""


class Ready(BaseHTTPRequestHandler):
    """Says that it is ready."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of it."""


class Run:
    """As much of a RunDirectory as a program needs that is no Triton."""

    def __init__(self, path: Path) -> None:
        self.path, self.log, self.backends, self.shared_memory_prefix = path, path / "log", path, "none"

    def environment(self) -> dict[str, str]:
        return {}

    def sweep_shared_memory(self) -> None:
        """There is none."""


@contextmanager
def server_of(program: str, folder: Path) -> Iterator[TritonServer]:
    """A server of `program`, which is not started."""
    binary = folder / "server"
    binary.write_text(f"#!{sys.executable}\n{program}")
    binary.chmod(0o755)
    config = ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), ready_timeout=60.0)
    with TritonServer(binary, folder, cast(RunDirectory, Run(folder)), config) as server:
        yield server


def test_a_server_that_listens_is_believed(tmp_path: Path) -> None:
    with server_of(LISTENS, tmp_path) as server:
        server.start()
        assert server.is_running


def test_a_port_that_was_lost_is_chosen_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = HTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    chosen, attempts = Ports.reserve, list[int]()

    def reserve(self: Ports, host: str) -> Ports:
        """The first choice is the stranger's."""
        attempts.append(self.http)
        ports = chosen(self, host)
        return ports if len(attempts) > 1 else replace(ports, http=stranger.server_port)

    monkeypatch.setattr(Ports, "reserve", reserve)
    deaf = f"import sys, time\nif '--http-port={stranger.server_port}' in sys.argv: time.sleep(60)\n"
    with server_of(deaf + LISTENS, tmp_path) as server:
        server.start()
        assert server.is_running
        assert server.config.ports.http != stranger.server_port
    assert attempts == [0, 0]
    stranger.shutdown()
    stranger.server_close()


def test_a_stranger_on_its_port_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = HTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    chosen = Ports.reserve

    def reserve(self: Ports, host: str) -> Ports:
        """A stranger has the port before the server starts."""
        ports = chosen(self, host)
        return Ports(http=stranger.server_port, grpc=ports.grpc, metrics=ports.metrics)

    monkeypatch.setattr(Ports, "reserve", reserve)
    with (
        server_of("import time; time.sleep(60)", tmp_path) as server,
        pytest.raises(PortLost, match=f"port {stranger.server_port} was free, .* --http-port"),
    ):
        server.start()
    stranger.shutdown()
    stranger.server_close()
