"""What strangers send below HTTP: raw bytes on a connection."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from support.fake_triton import Front, front

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Front]:
    with front(max_header_bytes=4096, read_timeout=30.0) as started:
        yield started


def answers(gateway: Front, data: bytes) -> list[tuple[int, bytes]]:
    """(status, rest) of each answer on a connection that sends `data` and waits for the other end to close it."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        connection.sendall(data)
        received = b""
        try:
            while part := connection.recv(1 << 16):
                received += part
        except ConnectionResetError:  # what it sent was not read to its end
            pass
    return [(int(part[:3]), part) for part in received.split(b"HTTP/1.1 ")[1:]]


def test_a_plain_request_is_answered(gateway: Front) -> None:
    ((status, _),) = answers(gateway, GET + b"Connection: close\r\n\r\n")
    assert status == 200


@pytest.mark.parametrize(
    "data",
    [
        GET + b"X: " + b"a" * 100_000,  # no end in sight
        GET + b"X: " + b"a" * 5000 + b"\r\n\r\n",
        GET + b"".join(b"h%d: v\r\n" % number for number in range(2000)) + b"\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_large_headers_are_refused(gateway: Front, data: bytes) -> None:
    ((status, rest),) = answers(gateway, data)
    assert status == 431
    assert json.loads(rest.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "headers_too_large"


POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + HIDDEN,
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"Content-Length: +5\r\n\r\nabcde" + HIDDEN,
        POST + b"X: a\x00b\r\n\r\n" + HIDDEN,
        POST.replace(b"\r\n", b"\r") + b"\r\n\r\n" + HIDDEN,
        POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + HIDDEN,
        b"\x16\x03\x01\x02\x00\x01\x00" + HIDDEN,
    ],
)
def test_no_request_hides_in_another(gateway: Front, data: bytes) -> None:
    found = answers(gateway, data)
    assert [status for status, _ in found] == [400]
    assert json.loads(found[0][1].split(b"\r\n\r\n", 1)[1])["error"]


def test_requests_behind_each_other_are_answered_in_order(gateway: Front) -> None:
    found = answers(gateway, GET + b"\r\n" + HIDDEN + GET + b"Connection: close\r\n\r\n")
    assert [status for status, _ in found] == [200, 200, 200]
    assert b'"demo"' in found[1][1]


def test_a_refused_body_is_not_read_as_a_request() -> None:
    with front(max_body_bytes=10) as gateway:
        found = answers(gateway, POST + b"Content-Length: 42\r\n\r\n" + HIDDEN)
    assert [status for status, _ in found] == [413]


def test_who_sends_nothing_is_let_go() -> None:
    with front(read_timeout=0.2) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as silent:
            assert silent.recv(100).startswith(b"HTTP/1.1 408")
        # What it sends is there when it is let in, or its time would have begun before.
        loop, may_go_on = gateway.server._loop, threading.Event()
        assert loop is not None
        loop.call_soon_threadsafe(may_go_on.wait)
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as slow:
            slow.sendall(POST + b"Content-Length: 10\r\n\r\nabc")
            may_go_on.set()
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_connections_have_a_bound() -> None:
    with front(max_connections=2) as gateway:
        open_ones = [socket.create_connection(("127.0.0.1", gateway.port), timeout=60) for _ in range(2)]
        for connection in open_ones:
            connection.sendall(GET + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as third:
            assert third.recv(100).startswith(b"HTTP/1.1 503")
        for connection in open_ones:
            connection.close()
