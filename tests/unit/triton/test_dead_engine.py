"""When a process leaves because its engine is dead."""

from __future__ import annotations

from trierarch.python_backend.model import TritonPythonModel
from trierarch.python_backend.triton.dead_engine import GRACE_SECONDS, DeadEngine


class Engine:
    def __init__(self) -> None:
        self.is_healthy, self.num_open, self.now = True, 1, 0.0
        self.num_exits = 0
        self.watch = DeadEngine(lambda: self.is_healthy, lambda: self.num_open, self.leave, lambda: self.now)

    def leave(self) -> None:
        self.num_exits += 1


def test_a_healthy_engine_stays() -> None:
    engine = Engine()
    engine.num_open = 0
    for engine.now in (0.0, 100.0, 200.0):
        engine.watch.look()
    assert engine.num_exits == 0


def test_a_dead_one_leaves_once_every_answer_is_out() -> None:
    engine = Engine()
    engine.is_healthy = False
    engine.watch.look()
    engine.watch.look()
    assert engine.num_exits == 0, "an answer is open"
    engine.num_open = 0
    engine.watch.look()
    assert engine.num_exits == 1


def test_answers_get_at_least_until_the_next_look() -> None:
    engine = Engine()
    engine.is_healthy, engine.num_open = False, 0
    engine.watch.look()
    assert engine.num_exits == 0
    engine.watch.look()
    assert engine.num_exits == 1


def test_an_answer_that_does_not_leave_has_its_time_and_no_more() -> None:
    engine = Engine()
    engine.is_healthy = False
    for engine.now in (1.0, 1.0 + GRACE_SECONDS):
        engine.watch.look()
    assert engine.num_exits == 0
    engine.now += 0.1
    engine.watch.look()
    assert engine.num_exits == 1


class Role:
    def __init__(self) -> None:
        self.is_up = True

    def is_ready(self) -> bool:
        return self.is_up


def test_a_model_is_ready_while_its_role_is() -> None:
    model = TritonPythonModel()
    role = Role()
    model._role = role  # type: ignore[assignment]
    assert model.is_ready()
    role.is_up = False
    assert not model.is_ready()


def test_a_model_whose_role_cannot_fail_is_ready() -> None:
    model = TritonPythonModel()
    model._role = object()  # type: ignore[assignment]
    assert model.is_ready()
