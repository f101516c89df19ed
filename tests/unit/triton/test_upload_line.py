"""Requests that bring adapters stand in line; others pass, unless they name what may be on its way."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from support.eventually import eventually
from trierarch.python_backend.errors import Overloaded
from trierarch.python_backend.triton.incoming import Incoming
from trierarch.python_backend.triton.responses import NamedArray
from trierarch.python_backend.triton.upload_line import MAX_UPLOADS, UploadLine


class RecordingChannel:
    """A Channel that remembers its error."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def send(self, arrays: Sequence[NamedArray], is_final: bool) -> None:
        raise AssertionError("nothing is sent here")

    def fail(self, error: BaseException) -> None:
        self.error = error

    def is_cancelled(self) -> bool:
        return False


def incoming(client_id: str = "", **arrays: Any) -> Incoming:
    return Incoming(client_id=client_id, arrays=arrays, requested=frozenset(), timeout=None, channel=RecordingChannel())


def upload(client_id: str) -> Incoming:
    return incoming(client_id, lora_weights=np.zeros((1, 1, 8), np.float16), lora_task_id=np.array([[7]], np.uint64))


def by_id(client_id: str) -> Incoming:
    return incoming(client_id, lora_task_id=np.array([[7]], np.uint64))


def test_order_is_kept_and_only_those_wait_that_must() -> None:
    started: list[str] = []
    may_start = threading.Semaphore(0)

    def start(request: Incoming) -> None:
        may_start.acquire()
        started.append(request.client_id)

    line = UploadLine(start)
    plain, named = incoming("plain"), by_id("named")
    assert not line.takes(plain)
    assert not line.takes(named)
    assert line.takes(upload("first"))
    line.put(upload("first"))
    assert line.takes(named)
    assert line.takes(incoming("too", lora_name=np.array([[b"7"]], np.object_)))
    assert not line.takes(plain)
    line.put(named)
    line.put(upload("second"))
    may_start.release(3)
    eventually(lambda: len(started) == 3, "all started")
    assert started == ["first", "named", "second"]
    eventually(lambda: not line.takes(named), "an empty line")
    line.close()


def test_too_many_are_refused_at_once() -> None:
    may_start = threading.Event()
    started: list[str] = []

    def start(request: Incoming) -> None:
        may_start.wait()
        started.append(request.client_id)

    line = UploadLine(start)
    requests = [upload(str(number)) for number in range(MAX_UPLOADS + 1)]
    for request in requests:
        line.put(request)
    line.put(by_id("named"))
    *_, last = requests
    assert isinstance(last.channel, RecordingChannel)
    assert isinstance(last.channel.error, Overloaded)
    may_start.set()
    line.close()
    assert started == [*map(str, range(MAX_UPLOADS)), "named"]
