"""What a server says of loading and unloading, told to people."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.model_control import ModelControlClient, ModelRefused

ANSWERS: dict[str, tuple[int, object]] = {
    "/v2/repository/models/good/load": (200, {}),
    "/v2/repository/models/bad/load": (
        400,
        {"error": "failed to load 'bad', failed: AdapterError: it is another model's\n\nAt:\n  /x/model.py(70): f\n"},
    ),
    "/v2/repository/models/fixed/load": (
        400,
        {"error": "explicit model load / unload is not allowed if polling is enabled"},
    ),
    "/v2/repository/index": (
        200,
        [
            {"name": "tensorrt_llm", "version": "1", "state": "READY", "reason": ""},
            {"name": "french", "version": "1", "state": "READY", "reason": ""},
            {"name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": "AdapterError: no\nAt: x"},
        ],
    ),
    "/v2/models/tensorrt_llm/config": (200, {"name": "tensorrt_llm"}),
    "/v2/models/french/config": (200, {"parameters": {"role": {"string_value": "adapter"}}}),
}


class Handler(BaseHTTPRequestHandler):
    """Says what Triton says."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, answer = ANSWERS[self.path]
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def client() -> Iterator[ModelControlClient]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield ModelControlClient(f"127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_models_of_adapters_and_those_that_failed(client: ModelControlClient) -> None:
    assert [(one.name, one.state, one.reason) for one in client.adapter_models()] == [
        ("broken", "UNAVAILABLE", "AdapterError: no"),
        ("french", "READY", ""),
    ]


def test_a_refusal_is_one_line_and_says_why(client: ModelControlClient) -> None:
    client.load("good")
    with pytest.raises(ModelRefused) as refused:
        client.load("bad")
    assert str(refused.value) == "failed to load 'bad', failed: AdapterError: it is another model's"
    with pytest.raises(ModelRefused, match="serve it with --model-control explicit"):
        client.load("fixed")


def test_nobody_is_there() -> None:
    with pytest.raises(ResourceError, match=r"nothing answers at http://127\.0\.0\.1:9"):
        ModelControlClient("127.0.0.1:9").load("x")
