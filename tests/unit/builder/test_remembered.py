"""Facts are remembered until too many others were used since."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trierarch.builder.remembered import Remembered


@given(uses=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60), size=st.integers(1, 5))
def test_the_most_recently_used_are_remembered(uses: list[tuple[bool, int]], size: int) -> None:
    remembered, latest = Remembered[int](size), list[int]()
    for is_added, fact in uses:
        assert (fact in remembered) == (fact in latest)
        if is_added:
            remembered.add(fact)
        if is_added or fact in latest:
            latest = [other for other in latest if other != fact][1 - size :] if size > 1 else []
            latest.append(fact)
