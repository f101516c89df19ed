"""Who may come in, how many, and when to come again; and whether there is a Triton at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.fetch import FetchFailed
from trierarch.orchestrator.gateway.admission import Admission
from trierarch.orchestrator.gateway.api_keys import NOBODY, ApiKeys
from trierarch.orchestrator.gateway.capacity import Capacity
from trierarch.orchestrator.gateway.errors import ApiError
from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
from trierarch.orchestrator.gateway.pace import LEAST_SECONDS, MOST_SECONDS, Pace
from trierarch.orchestrator.gateway.upstream import AlwaysOn, Endpoints, Unavailable
from trierarch.orchestrator.gateway.vital_signs import STILL_SECONDS, VitalSigns


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_keys_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\none\n\n  two \n")
    keys = ApiKeys.read(file)
    assert keys.check(b"Bearer one") == 1
    assert keys.check(b"bearer two") == 2
    for sent in (None, b"", b"one", b"Bearer", b"Bearer ", b"Bearer on", b"Bearer onee", b"Basic one", b"Bearer \xff"):
        with pytest.raises(ApiError) as caught:
            keys.check(sent)
        assert caught.value.status == 401


def test_no_keys_let_everybody_in() -> None:
    assert ApiKeys().check(None) == NOBODY


def test_an_operator_who_names_keys_has_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="has no key"):
        ApiKeys.read(tmp_path / "empty")
    with pytest.raises(ConfigError, match="cannot be read"):
        ApiKeys.read(tmp_path / "none")
    monkeypatch.delenv("NO_KEYS", raising=False)
    with pytest.raises(ConfigError, match="holds no key"):
        ApiKeys.read(variable="NO_KEYS")
    with pytest.raises(ConfigError, match="no header can hold"):
        ApiKeys(("a b",))


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(0, 1000))
def test_the_time_to_come_again_is_bounded_and_follows_the_pace(gaps: list[float], num_ahead: int) -> None:
    clock = Clock()
    pace = Pace(clock)
    for gap in gaps:
        clock.seconds += gap
        pace.finish()
    seconds = pace.seconds_until(num_ahead)
    assert LEAST_SECONDS <= seconds <= MOST_SECONDS
    assert seconds <= pace.seconds_until(num_ahead + 1)


def test_a_steady_pace_is_measured() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(100):
        clock.seconds += 0.25
        pace.finish()
    assert pace.seconds_until(20) == pytest.approx(5.0, rel=0.05)
    clock.seconds += 3600
    assert pace.per_second() is None


def test_places_are_given_back_whatever_happens() -> None:
    admission = Admission(2, 1, [Capacity()])
    with admission.admit(1), admission.admit(2):
        for key in (1, 3):
            with pytest.raises(ApiError), admission.admit(key):
                pass
    with pytest.raises(ZeroDivisionError), admission.admit(1):
        raise ZeroDivisionError
    assert admission.num_open == 0
    admission.drain()
    with pytest.raises(ApiError) as caught, admission.admit(1):
        pass
    assert caught.value.code == "draining"


def page(seconds: int) -> str:
    return (
        "# TYPE nv_trt_llm_general_metrics gauge\n"
        'nv_trt_llm_general_metrics{general_type="iteration_counter",model="tensorrt_llm",version="1"} 7\n'
        f'nv_trt_llm_general_metrics{{general_type="timestamp",model="tensorrt_llm",version="1"}} {seconds}\n'
    )


def signs(clock: Clock, fetch: Callable[..., str]) -> VitalSigns:
    return VitalSigns("h:1", "h:2", now=clock, fetch=fetch)


def test_a_heart_that_stands_still_is_no_life() -> None:
    clock, beat = Clock(), 0
    vital = signs(clock, lambda url, timeout: page(beat) if url.endswith("metrics") else "")
    for _ in range(20):
        clock.seconds += 1
        beat += 1
        assert vital.are_good()
    clock.seconds += STILL_SECONDS - 0.1
    assert vital.are_good()
    clock.seconds += 0.2
    assert not vital.are_good()
    beat += 1
    assert vital.are_good()


def test_other_models_have_no_heart_to_look_at() -> None:
    clock = Clock()
    vital = signs(clock, lambda url, timeout: "")
    clock.seconds += 1000
    assert vital.are_good()


def test_no_answer_is_no_life() -> None:
    def fail(url: str, timeout: float) -> str:
        raise FetchFailed("refused")

    assert not signs(Clock(), fail).are_good()


def test_an_upstream_that_is_not_there_says_so() -> None:
    async def ask() -> None:
        async with AlwaysOn(Endpoints(grpc="127.0.0.1:1", http="127.0.0.1:1", metrics="127.0.0.1:1")) as upstream:
            assert not upstream.is_ready
            assert upstream.awake is None
            with pytest.raises(Unavailable):
                async with upstream.lease():
                    pass

    asyncio.run(ask())


@pytest.mark.parametrize(
    "field", ["max_open", "max_body_bytes", "max_connections", "max_header_bytes", "max_open_per_key"]
)
def test_bounds_are_at_least_one(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        GatewayConfig(**{field: 0})
    with pytest.raises(ConfigError, match="--gateway-port"):
        GatewayConfig(port=65536)
    with pytest.raises(ConfigError, match="go together"):
        GatewayConfig(adapter_store=Path("x"))


def test_a_model_is_looked_at_by_itself() -> None:
    clock = Clock()
    asked: list[str] = []

    def fetch(url: str, timeout: float) -> str:
        asked.append(url)
        return page(int(clock.seconds)) + page(1).replace('model="tensorrt_llm"', 'model="other"')

    ours = VitalSigns("h:1", "h:2", "tensorrt_llm", clock, fetch)
    theirs = VitalSigns("h:1", "h:2", "other", clock, fetch)
    assert ours.are_good()
    assert theirs.are_good()
    assert asked[0] == "http://h:1/v2/models/tensorrt_llm/ready"
    clock.seconds += STILL_SECONDS + 1
    assert ours.are_good()
    assert not theirs.are_good()
