from __future__ import annotations

from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.sleep.figures import Figures, Page
from trierarch.orchestrator.sleep.lifecycle import Lifecycle, Phase
from trierarch.orchestrator.sleep.rest import Rest


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_the_time_that_a_server_runs_is_counted_and_set_against_always_on() -> None:
    clock = Clock()
    figures = Figures(Lifecycle(Rest(idle_timeout=1)), clock)
    page = Page()
    page.add("demo", figures)

    figures.starts()
    clock.now += 10
    figures.woke(2.0)
    figures.ended()
    clock.now += 30
    figures.starts()
    clock.now += 5

    shown = Metrics.parse(page.render().decode())
    assert shown.value("trierarch_sleep_replica_seconds_total", engine="demo") == 15
    assert shown.value("trierarch_sleep_always_on_seconds_total", engine="demo") == 45
    assert shown.value("trierarch_sleep_wake_seconds_sum", engine="demo") == 2
    assert "ran 15 of 45 s (33% of always on)" in figures.line()


def test_every_count_is_on_the_page_and_each_observation_once() -> None:
    figures = Figures(Lifecycle(Rest(idle_timeout=1)), Clock())
    page = Page()
    page.add("demo", figures)
    figures.held(1.5)
    figures.held(0.5)
    figures.refused()
    figures.retried()
    figures.died()
    figures.failed()

    for _ in range(2):
        shown = Metrics.parse(page.render().decode())
        assert shown.value("trierarch_sleep_held_seconds_count", engine="demo") == 2
        assert shown.value("trierarch_sleep_held_seconds_sum", engine="demo") == 2.0
    for name in ("refused", "retries", "deaths", "wake_failures"):
        assert shown.value(f"trierarch_sleep_{name}_total", engine="demo") == 1
    assert shown.value("trierarch_sleep_held_total", engine="demo") == 2
    phases = {phase: shown.value("trierarch_sleep_phase", phase=phase.value) for phase in Phase}
    assert phases.pop(Phase.ASLEEP) == 1
    assert set(phases.values()) == {0}
    line = figures.line()
    assert all(words in line for words in ("asleep", "2 requests waited, 1.0 s in the median", "1 refused", "1 deaths"))
