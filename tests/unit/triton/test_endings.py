"""How requests end early: cancellation, and errors as Triton's status."""

from __future__ import annotations

import pytest

from trierarch.python_backend.errors import (
    Cancelled,
    DeadlineExceeded,
    ExecutorFailed,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
    UnknownAdapter,
)
from trierarch.python_backend.triton.cancellation import MAX_WAITING_ASKED, OpenRequests
from trierarch.python_backend.triton.status import StatusCode, status_of, tag, untag


class Open:
    def __init__(self, client_id: str, is_gone: bool = False, has_begun: bool = False) -> None:
        self.client_id = client_id
        self.is_gone = is_gone
        self.has_begun = has_begun
        self.num_asked = 0
        self.heard: list[str] = []

    def is_cancelled(self) -> bool:
        self.num_asked += 1
        return self.is_gone

    def cancel(self) -> None:
        self.heard.append("cancel")

    def stop(self) -> None:
        self.heard.append("stop")


def test_only_the_gone_are_cancelled() -> None:
    requests = OpenRequests()
    here, gone, left = Open("a"), Open("b", is_gone=True), Open("c", is_gone=True)
    for request in (here, gone, left):
        requests.add(request)
    requests.discard(left)
    requests.discard(left)
    requests.cancel_abandoned()
    assert (here.heard, gone.heard, left.heard) == ([], ["cancel"], [])
    assert len(requests) == 2


def test_looking_costs_no_more_the_more_wait_and_misses_nobody() -> None:
    requests = OpenRequests()
    running = [Open(str(number), has_begun=True) for number in range(40)]
    waiting = [Open(str(number)) for number in range(5 * MAX_WAITING_ASKED)]
    for request in (*waiting, *running):
        requests.add(request)
    for look in range(1, 11):
        requests.cancel_abandoned()
        assert {request.num_asked for request in running} == {look}
        assert sum(request.num_asked for request in waiting) == look * MAX_WAITING_ASKED
    assert {request.num_asked for request in waiting} == {2}
    waiting[-1].is_gone = True
    for _ in range(5):
        requests.cancel_abandoned()
    assert waiting[-1].heard == ["cancel"]


def test_stop_reaches_every_request_of_the_id() -> None:
    requests = OpenRequests()
    ours, also_ours, other = Open("a"), Open("a"), Open("b")
    for request in (ours, also_ours, other):
        requests.add(request)
    requests.stop("a")
    requests.stop("unknown")
    assert (ours.heard, also_ours.heard, other.heard) == (["stop"], ["stop"], [])
    with pytest.raises(InvalidRequest, match="a request id must be provided"):
        requests.stop("")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("top_p", 2, "no"), StatusCode.INVALID_ARG),
        (UnknownAdapter("lora_name", "x", "no"), StatusCode.INVALID_ARG),
        (Overloaded("full"), StatusCode.UNAVAILABLE),
        (ShuttingDown("bye"), StatusCode.UNAVAILABLE),
        (Cancelled("gone"), StatusCode.CANCELLED),
        (DeadlineExceeded("late"), StatusCode.CANCELLED),
        (ExecutorFailed("ours"), StatusCode.INTERNAL),
    ],
)
def test_each_error_has_its_status(error: Exception, code: StatusCode) -> None:
    assert status_of(error) == (code, str(error))
    for message in (tag(*status_of(error)), "in ensemble 'ensemble', " + tag(*status_of(error))):
        relayed = untag(message)
        assert relayed is not None
        assert status_of(relayed) == (code, str(error))


def test_an_unforeseen_error_says_nothing_of_our_insides() -> None:
    code, message = status_of(FileNotFoundError("/secret/engine"))
    assert code is StatusCode.INTERNAL
    assert "secret" not in message


def test_an_untagged_message_is_nobodys() -> None:
    assert untag("Failed: no tag here") is None
    assert untag("max_tokens is 0: must be at least 1") is None
