from __future__ import annotations

from pathlib import Path

import pytest

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator import supervisor
from trierarch.orchestrator.supervisor import RestartPolicy, Supervisor


class Script(BaseException):
    """The story is over."""


class FakeServer:
    """A server that lives through a list of (is running, live stubs), one for each look, then ends the watch.

    Restarts fail as often as `failures` says.
    """

    log = Path("server.log")

    def __init__(self, looks: list[tuple[bool, set[int]]], failures: int = 0) -> None:
        self.looks = looks
        self.failures = failures
        self.deeds: list[str] = []

    @property
    def is_running(self) -> bool:
        if not self.looks:
            raise Script
        return self.looks[0][0]

    def stub_pids(self) -> frozenset[int]:
        return frozenset(self.looks.pop(0)[1])

    def kill(self) -> None:
        self.deeds.append("kill")

    def start(self) -> None:
        self.deeds.append("start")
        if self.failures:
            self.failures -= 1
            raise ResourceError("not ready")


def watch(server: FakeServer, monkeypatch: pytest.MonkeyPatch, policy: RestartPolicy | None = None) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(supervisor.time, "sleep", lambda seconds: server.deeds.append(f"sleep {seconds:g}"))
    with pytest.raises((Script, ResourceError)) as ended:
        Supervisor(server, said.append, policy).watch()  # type: ignore[arg-type]  # stands in for a TritonServer
    server.deeds = [deed for deed in server.deeds if deed != f"sleep {supervisor.WATCH_SECONDS:g}"]
    return [*said, str(ended.value)]


def test_a_healthy_server_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer([(True, {1, 2})] * 4)

    watch(server, monkeypatch)

    assert server.deeds == []


def test_a_dead_stub_brings_the_server_down_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer([(True, {1, 2}), (True, {1}), (True, {3, 4}), (True, {3, 4})])

    said = watch(server, monkeypatch)

    assert server.deeds == ["kill", "sleep 0", "start"]
    assert said[0] == "stub process 2 died: restarting the server"
    assert said[1].startswith("serving again after")


def test_failed_restarts_back_off_and_end_with_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer([(True, {1}), (True, set())], failures=9)

    said = watch(server, monkeypatch, RestartPolicy(delays=(0.0, 3.0)))

    assert [deed for deed in server.deeds if deed.startswith("sleep")] == ["sleep 0", "sleep 3"]
    assert "restarted 2 times" in said[-1]
    assert "server.log" in said[-1]


def test_the_policy_counts_only_what_is_recent() -> None:
    policy = RestartPolicy(delays=(0.0, 1.0), window=10.0)

    assert [policy.next_delay(now) for now in (0.0, 1.0, 2.0)] == [0.0, 1.0, None]
    assert policy.next_delay(10.5) == 1.0, "the restart at 0 is forgotten, the one at 1 is not"
    assert policy.next_delay(30.0) == 0.0
