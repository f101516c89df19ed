from __future__ import annotations

from typing import Any

import pytest

from trierarch.builder.errors import EngineError
from trierarch.python_backend.triton.lazy_role import LazyRole


class Echo:
    def __init__(self) -> None:
        self.is_closed = False

    def execute(self, requests: list[Any]) -> list[Any]:
        return requests

    def close(self) -> None:
        self.is_closed = True


def test_it_is_opened_once_by_the_first_request() -> None:
    opened: list[Echo] = []

    def open_role() -> Echo:
        opened.append(Echo())
        return opened[-1]

    role = LazyRole(open_role)
    assert not opened
    assert [role.execute([1]), role.execute([2])] == [[1], [2]]
    assert len(opened) == 1
    role.close()
    assert opened[0].is_closed


def test_one_that_never_ran_closes() -> None:
    LazyRole(lambda: pytest.fail("nobody asked")).close()


def test_a_failure_to_open_meets_each_request() -> None:
    failures = [EngineError("no tokenizer"), EngineError("no tokenizer")]

    def open_role() -> Echo:
        if failures:
            raise failures.pop()
        return Echo()

    role = LazyRole(open_role)
    for _ in range(2):
        with pytest.raises(EngineError):
            role.execute([1])
    assert role.execute([3]) == [3]
