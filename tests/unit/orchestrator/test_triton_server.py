"""What may go wrong while a server starts: somebody else takes its port, a stub dies."""

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

from support.eventually import eventually
from trierarch.builder.errors import ResourceError
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


STUB_DIES = """
import ctypes, os, time
from pathlib import Path
starts = Path("starts")
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
is_first = starts.read_text() == "x"
if os.fork() == 0:
    if is_first: os._exit(1)
    ctypes.CDLL(None).prctl(15, b"triton_python_b", 0, 0, 0)
    time.sleep(3600)
if is_first:
    print("{says}", flush=True)
    time.sleep(3600)
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


def test_a_server_whose_stub_died_while_it_started_is_started_again(tmp_path: Path) -> None:
    """Triton waits for it as if it lived."""
    with server_of(STUB_DIES.format(says="") + LISTENS, tmp_path) as server:
        server.start()
        eventually(lambda: len(server.stub_pids()) == 1, "the second stub lives")
    assert (tmp_path / "starts").read_text() == "xx"


def test_a_dead_stub_whose_model_did_not_load_is_told_of(tmp_path: Path) -> None:
    """The rest of the server's models may take long; they are not waited for, and it is not tried again."""
    says = "failed to load 'a' version 1: Internal: no such engine"
    with server_of(STUB_DIES.format(says=says) + LISTENS, tmp_path) as server:
        (tmp_path / "log").write_text("failed to load 'b' version 1: of an earlier start\n")
        with pytest.raises(ResourceError, match="model 'a' did not load: Internal: no such engine"):
            server.start()
    assert (tmp_path / "starts").read_text() == "x"


def test_what_a_stub_starts_is_no_stub(tmp_path: Path) -> None:
    """Between a fork and what it is for it has the name of one."""
    forks = "import ctypes, os, time\nif os.fork() == 0:\n    ctypes.CDLL(None).prctl(15, b'triton_python_b', 0, 0, 0)\n    os.fork()\n    time.sleep(3600)\n"
    with server_of(forks + LISTENS, tmp_path) as server:
        server.start()
        eventually(lambda: len(server.processes()) == 4, "both are there")
        eventually(lambda: len(server.stub_pids()) == 1, "the stub has its name")
