from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trierarch.orchestrator.fetch import FetchFailed, fetch


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200 if self.path == "/ready" else 503, f"got {self.path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._answer(200, f"{self.headers['Content-Type']} {body}")

    def log_message(self, *given: object) -> None:
        pass

    def _answer(self, status: int, content: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_get_and_post(url: str) -> None:
    assert fetch(f"{url}/ready") == "got /ready"
    assert fetch(f"{url}/index", '{"ready": true}') == 'application/json {"ready": true}'


def test_whatever_is_no_success_fails(url: str) -> None:
    with pytest.raises(FetchFailed, match="status 503: got /other"):
        fetch(f"{url}/other")
    with pytest.raises(FetchFailed, match="refused"):
        fetch("http://127.0.0.1:9")  # the discard port
