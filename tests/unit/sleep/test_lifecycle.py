"""When a server runs, is decided without one: stories by hand, then hypothesis plays the world."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.gateway.upstream import Unavailable
from trierarch.orchestrator.sleep.lifecycle import BACKOFF_SECONDS, PATIENCE, RUNNING, Deed, Lifecycle, Phase
from trierarch.orchestrator.sleep.rest import Rest

REST = Rest(idle_timeout=10.0, wake_timeout=5.0, max_held_requests=3)


def awake(now: float = 0.0) -> Lifecycle:
    """One that was woken by a request that has gone since."""
    lifecycle = Lifecycle(REST)
    lifecycle.arrive(now - 1.0)
    assert lifecycle.decide(now - 1.0).deed is Deed.START
    lifecycle.woke(now)
    assert len(lifecycle.decide(now).admitted) == 1
    lifecycle.leave(now, lifecycle.wakes, True)
    assert lifecycle.decide(now).deed is None
    return lifecycle


def test_it_sleeps_until_asked_and_then_admits_those_who_waited_in_their_order() -> None:
    lifecycle = Lifecycle(REST)
    assert lifecycle.decide(0.0).deed is None
    assert lifecycle.next_change(0.0) is None

    first, second = lifecycle.arrive(1.0), lifecycle.arrive(2.0)
    assert lifecycle.decide(2.0).deed is Deed.START
    third = lifecycle.arrive(2.5)
    assert lifecycle.decide(2.5).deed is None, "once is enough"
    lifecycle.woke(3.0)

    assert lifecycle.decide(3.0).admitted == [first, second, third]
    assert lifecycle.num_leases == 3
    assert lifecycle.wake_seconds == 1.0


def test_idleness_begins_with_the_last_leave() -> None:
    lifecycle = awake()
    lifecycle.arrive(9.0)
    lifecycle.decide(9.0)
    assert lifecycle.decide(500.0).deed is None, "somebody is there"

    lifecycle.leave(500.0, lifecycle.wakes, True)

    assert lifecycle.next_change(500.0) == 510.0
    assert lifecycle.decide(509.9).deed is None
    assert lifecycle.decide(510.0).deed is Deed.STOP
    assert lifecycle.phase is Phase.STOPPING
    lifecycle.stopped()
    assert lifecycle.decide(511.0).deed is None
    assert lifecycle.phase is Phase.ASLEEP


def test_who_comes_while_it_stops_is_held_and_wakes_it_again() -> None:
    lifecycle = awake()
    assert lifecycle.decide(10.0).deed is Deed.STOP
    late = lifecycle.arrive(10.1)
    assert lifecycle.decide(10.1).deed is None

    lifecycle.stopped()

    assert lifecycle.decide(10.5).deed is Deed.START
    lifecycle.woke(11.0)
    assert lifecycle.decide(11.0).admitted == [late]


def test_waiting_is_bounded_in_number_and_in_time() -> None:
    lifecycle = awake()
    lifecycle.decide(10.0)
    lifecycle.stopped()
    requests = [lifecycle.arrive(20.0 + index) for index in range(3)]
    lifecycle.decide(22.0)

    with pytest.raises(Unavailable) as refused:
        lifecycle.arrive(22.0)
    assert "3 requests wait" in refused.value.reason
    assert refused.value.retry_after == 1.0, "what a wake took"

    assert lifecycle.next_change(22.0) == 25.0
    orders = lifecycle.decide(25.0)
    assert list(orders.refused) == requests[:1]
    assert "within 5 s" in orders.refused[requests[0]].reason
    lifecycle.abandon(requests[1])
    lifecycle.woke(26.0)
    assert lifecycle.decide(26.0).admitted == requests[2:]


def test_a_server_that_died_comes_back_at_once_for_whoever_may_come() -> None:
    lifecycle = awake()
    lifecycle.arrive(1.0)
    lifecycle.decide(1.0)

    lifecycle.died(2.0, "a stub died")
    assert lifecycle.num_leases == 0
    again = lifecycle.arrive(2.0)
    assert lifecycle.decide(2.0).deed is None, "what is left of it is being killed"
    lifecycle.stopped()

    assert lifecycle.decide(2.1).deed is Deed.START
    lifecycle.leave(2.2, 1, False)
    assert lifecycle.num_leases == 0, "a lease of the dead one ended with it"
    lifecycle.woke(3.0)
    assert lifecycle.decide(3.0).admitted == [again]


def test_one_that_died_and_whom_nobody_wants_stays_down() -> None:
    lifecycle = awake()
    lifecycle.died(9.0, "the server died")
    lifecycle.stopped()

    assert lifecycle.decide(10.0).deed is None
    assert lifecycle.phase is Phase.ASLEEP


def test_one_that_keeps_dying_while_nobody_asks_is_left_alone() -> None:
    lifecycle, now, starts = awake(), 0.0, 0
    for _ in range(100):
        lifecycle.died(now, "it dies of itself")
        lifecycle.stopped()
        now += BACKOFF_SECONDS[-1] if starts >= PATIENCE else BACKOFF_SECONDS[starts]
        if lifecycle.decide(now).deed is None:
            break
        starts += 1
        lifecycle.woke(now)
        lifecycle.decide(now)

    assert starts == PATIENCE - 1
    assert lifecycle.phase in (Phase.FAILED, Phase.ASLEEP)


def test_one_that_keeps_dying_is_given_up_for_longer_and_longer() -> None:
    lifecycle = awake()
    lifecycle.arrive(0.0)
    now = 0.0
    for fall in range(PATIENCE):
        lifecycle.decide(now)
        if lifecycle.phase is Phase.AWAKE:
            lifecycle.died(now, "it dies of this prompt")
            lifecycle.stopped()
        else:
            assert lifecycle.phase is Phase.WAKING
            lifecycle.fell(now, "it dies of this prompt")
        held = lifecycle.arrive(now) if fall < PATIENCE - 1 else None
        if held is not None:
            assert held not in lifecycle.decide(now).refused
        now += BACKOFF_SECONDS[fall]

    asked = now - BACKOFF_SECONDS[PATIENCE - 1]
    assert len(lifecycle.decide(asked).refused) == 2
    assert not lifecycle.is_ready(asked)
    with pytest.raises(Unavailable) as refused:
        lifecycle.arrive(asked)
    assert "dies of this prompt" in refused.value.reason
    assert refused.value.retry_after == BACKOFF_SECONDS[PATIENCE - 1]
    assert lifecycle.is_ready(now)
    lifecycle.arrive(now)
    assert lifecycle.decide(now).deed is Deed.START, "and tried again after a while, for who asks then"


def test_one_that_never_started_is_not_tried_twice_for_the_same_request() -> None:
    lifecycle = Lifecycle(REST)
    request = lifecycle.arrive(0.0)
    lifecycle.decide(0.0)

    lifecycle.fell(0.5, "no engine")

    orders = lifecycle.decide(0.5)
    assert "no engine" in orders.refused[request].reason
    assert orders.deed is None
    lifecycle.arrive(0.6)
    assert lifecycle.decide(0.6).deed is Deed.START, "the next one tries again"


def test_an_answer_restores_trust() -> None:
    lifecycle = awake()
    for now in range(1, 2 * PATIENCE):
        lifecycle.died(now, "killed by hand")
        lifecycle.stopped()
        lifecycle.arrive(now)
        assert lifecycle.decide(now).deed is Deed.START, "the first fall since an answer costs no wait"
        lifecycle.woke(now)
        lifecycle.decide(now)
        lifecycle.leave(now, lifecycle.wakes, True)


def test_closing_lets_what_is_open_finish_and_refuses_the_rest() -> None:
    lifecycle = awake()
    lifecycle.arrive(1.0)
    lifecycle.decide(1.0)

    lifecycle.close()

    assert lifecycle.decide(1.0).deed is None
    with pytest.raises(Unavailable, match="shutting down"):
        lifecycle.arrive(1.0)
    lifecycle.leave(2.0, lifecycle.wakes, True)
    assert lifecycle.decide(2.0).deed is Deed.STOP
    assert not lifecycle.is_down_for_good
    lifecycle.stopped()
    assert lifecycle.is_down_for_good
    assert lifecycle.decide(3.0).deed is None


def test_closing_refuses_whoever_waits_and_stops_what_only_just_woke() -> None:
    lifecycle = Lifecycle(REST)
    request = lifecycle.arrive(0.0)
    lifecycle.decide(0.0)

    lifecycle.close()

    assert list(lifecycle.decide(0.0).refused) == [request]
    lifecycle.woke(1.0)
    assert lifecycle.decide(1.0).deed is Deed.STOP


def test_retry_after_is_what_is_left_of_a_median_wake() -> None:
    lifecycle = Lifecycle(REST)
    for seconds in (1.0, 4.0, 2.0):
        lifecycle.arrive(0.0)
        lifecycle.decide(0.0)
        lifecycle.woke(seconds)
        lifecycle.decide(seconds)
        lifecycle.leave(seconds, lifecycle.wakes, True)
        lifecycle.decide(100.0)
        lifecycle.stopped()
    lifecycle.arrive(200.0)
    lifecycle.decide(200.0)

    assert lifecycle.wake_seconds == 2.0
    assert lifecycle.seconds_to_wake(200.5) == 1.5
    assert lifecycle.seconds_to_wake(203.0) == 2.0, "overdue: nobody knows"


@pytest.mark.parametrize(
    "wrong",
    [{"idle_timeout": 0.0}, {"idle_timeout": 1.0, "wake_timeout": -1.0}, {"idle_timeout": 1.0, "max_held_requests": 0}],
)
def test_what_makes_no_sense_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--"):
        Rest(**wrong)  # type: ignore[arg-type]


class World(RuleBasedStateMachine):
    """A server that does as it is told, or dies; clients who come, leave and hang up; and time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.lifecycle = Lifecycle(REST)
        self.held: list[int] = []
        self.deadlines: dict[int, float] = {}
        self.leases: list[tuple[int, int]] = []
        self.is_up = self.is_changing = False
        self.is_closed = False

    def obey(self) -> None:
        orders = self.lifecycle.decide(self.now)
        for request in orders.refused:
            self.held.remove(request)
        if orders.admitted:
            assert self.is_up
            assert not self.is_changing
            assert orders.admitted == self.held, "all of them, the first come first"
            self.leases += [(request, self.lifecycle.wakes) for request in self.held]
            self.held = []
        if orders.deed is Deed.START:
            assert not self.is_up
            assert not self.is_changing
            assert not self.is_closed
            self.is_changing = True
        elif orders.deed is Deed.STOP:
            assert self.is_up
            assert not self.open_leases(), "nobody is cut off"
            self.is_changing = True

    def open_leases(self) -> list[tuple[int, int]]:
        return [lease for lease in self.leases if self.is_up and lease[1] == self.lifecycle.wakes]

    @rule()
    def arrive(self) -> None:
        try:
            request = self.lifecycle.arrive(self.now)
        except Unavailable:
            assert self.is_closed or len(self.held) >= REST.max_held_requests or not self.lifecycle.is_ready(self.now)
        else:
            self.held.append(request)
            self.deadlines[request] = self.now + REST.wake_timeout
        self.obey()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.held))
        self.held.remove(request)
        self.lifecycle.abandon(request)
        self.obey()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), is_answered=st.booleans())
    def leave(self, data: st.DataObject, is_answered: bool) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.leases.remove(lease)
        self.lifecycle.leave(self.now, lease[1], is_answered)
        self.obey()

    @precondition(lambda self: self.is_changing and not self.is_up)
    @rule()
    def wake(self) -> None:
        self.is_changing, self.is_up = False, True
        self.lifecycle.woke(self.now)
        self.obey()

    @precondition(lambda self: self.is_changing and not self.is_up)
    @rule()
    def fail_to_wake(self) -> None:
        self.is_changing = False
        self.lifecycle.fell(self.now, "it fell")
        self.obey()

    @precondition(lambda self: self.is_up and not self.is_changing)
    @rule()
    def die(self) -> None:
        self.is_changing = True
        self.lifecycle.died(self.now, "it died")
        self.obey()

    @precondition(lambda self: self.is_changing and self.is_up)
    @rule()
    def end(self) -> None:
        self.is_changing = self.is_up = False
        self.lifecycle.stopped()
        self.obey()

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.9, 5.0, 10.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.obey()

    @rule()
    def wait_for_what_is_due(self) -> None:
        moment = self.lifecycle.next_change(self.now)
        if moment is not None and moment != float("inf"):
            assert moment >= self.now
            self.now = moment
            self.obey()
            later = self.lifecycle.next_change(self.now)
            assert later is None or later > self.now, "what was due is done"

    @precondition(lambda self: not self.is_closed)
    @rule(is_wanted=st.integers(0, 19))
    def close(self, is_wanted: int) -> None:
        if is_wanted == 0:
            self.is_closed = True
            self.lifecycle.close()
            self.obey()

    @invariant()
    def agrees(self) -> None:
        lifecycle = self.lifecycle
        assert (self.is_up or self.is_changing) == (lifecycle.phase in RUNNING)
        assert lifecycle.num_held == len(self.held) <= REST.max_held_requests
        if not self.is_changing:
            assert lifecycle.num_leases == len(self.open_leases())
        assert all(self.deadlines[request] > self.now for request in self.held), "nobody waits beyond his time"
        if self.held:
            assert self.is_changing or lifecycle.next_change(self.now) is not None, "nobody is forgotten"
        if self.is_up and not self.is_changing:
            assert lifecycle.num_leases or self.now < lifecycle.last_used + REST.idle_timeout

    def teardown(self) -> None:
        """Once nothing fails any more everybody is answered, and then it sleeps."""
        if self.is_closed:
            return
        if self.is_changing and self.is_up:
            self.end()
        if self.is_changing:
            self.wake()
        for lease in list(self.leases):
            self.leases.remove(lease)
            self.lifecycle.leave(self.now, lease[1], True)
        self.obey()
        self.now += BACKOFF_SECONDS[-1]
        self.obey()
        if self.is_changing and self.is_up:
            self.end()
        if not self.is_up and not self.is_changing:
            self.arrive()
        if self.is_changing:
            self.wake()
        self.obey()
        assert not self.held
        for lease in list(self.leases):
            self.leases.remove(lease)
            self.lifecycle.leave(self.now, lease[1], True)
        self.now += REST.idle_timeout
        self.obey()
        assert self.lifecycle.phase is Phase.STOPPING


World.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
test_whatever_happens_nobody_is_forgotten_or_cut_off = World.TestCase
