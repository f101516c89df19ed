from __future__ import annotations

import itertools

from trierarch.benchmarks.pace import Pace


def test_the_rest_is_estimated_from_what_is_done() -> None:
    pace = Pace(4, clock=itertools.count(0, 100).__next__)

    assert pace.begin("start") == "[1/4] start"
    assert pace.begin("decode") == "[2/4] decode; about 5 min left at this pace"
    assert pace.begin("memory") == "[3/4] memory; about 3 min left at this pace"


def test_seconds_are_told_in_seconds() -> None:
    pace = Pace(3, clock=itertools.count(0, 10).__next__)

    pace.begin("start")

    assert pace.begin("decode") == "[2/3] decode; about 20 s left at this pace"
