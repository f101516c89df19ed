"""A server that answers as Triton's HTTP door does, in outline. Run by `stand_in.StandIn`.

    POST /v2/models/NAME/generate_stream   {"text_input", "max_tokens", "seconds"}: so many events, that long before each;
                                           with "waits", the last one only after SIGUSR1
    POST /v2/echo                          the request as it came: method, target, headers, body in latin-1
    GET /v2/silence                        nothing, for ever
    POST /v2/error                         {"status"}: that status
    GET /v2/log                            what has happened: [[what, target], ...], `hung up` among it
    anything else                          200 and the target

It tells its port, answers until SIGTERM, and then ends when its last answer is out.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable

LOG: list[tuple[str, str]] = []
MAY_GO_ON = threading.Event()


def read_request(connection: socket.socket) -> tuple[str, str, list[tuple[str, str]], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise OSError("no request")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]
    length = int(dict(headers).get("content-length", 0))
    while len(body) < length:
        body += connection.recv(65536)
    return method, target, headers, body


def respond(connection: socket.socket, status: int, body: bytes, content_type: str = "application/json") -> None:
    head = (
        f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\nx-of: stand-in\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)


def stream(connection: socket.socket, target: str, asked: dict[str, float | str]) -> None:
    connection.sendall(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for index in range(int(asked["max_tokens"])):
        if asked.get("waits") and index == int(asked["max_tokens"]) - 1:
            MAY_GO_ON.wait()
        if select.select([connection], [], [], float(asked.get("seconds", 0)))[0]:  # nothing else is ever sent to us
            LOG.append(("hung up", target))
            return
        event = b"data: " + json.dumps({"text_output": f"{asked['text_input']}.{index}"}).encode() + b"\n\n"
        connection.sendall(f"{len(event):x}\r\n".encode() + event + b"\r\n")
    connection.sendall(b"0\r\n\r\n")


def answer(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        method, target, headers, body = read_request(connection)
        LOG.append((method, target))
        if target.endswith("/generate_stream"):
            stream(connection, target, json.loads(body))
        elif target.startswith("/v2/echo"):
            shown = {"method": method, "target": target, "headers": headers, "body": body.decode("latin-1")}
            respond(connection, 200, json.dumps(shown).encode())
        elif target == "/v2/silence":
            select.select([connection], [], [])
            LOG.append(("hung up", target))
        elif target == "/v2/error":
            respond(connection, json.loads(body)["status"], b'{"error":"as you wished"}')
        elif target == "/v2/log":
            respond(connection, 200, json.dumps(LOG).encode())
        else:
            respond(connection, 200, target.encode(), "text/plain")


def serve(tell: Callable[[int], object]) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    signal.signal(signal.SIGUSR1, lambda number, frame: MAY_GO_ON.set())
    tell(listener.getsockname()[1])
    try:
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],)).start()
    finally:
        listener.close()
