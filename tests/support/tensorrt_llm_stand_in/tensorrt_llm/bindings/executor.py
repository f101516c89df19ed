"""KvCacheRetentionConfig, with the checks of its constructor."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

from tensorrt_llm.recorded import class_of


class _TokenRangeRetentionConfig(class_of("TokenRangeRetentionConfig")):  # type: ignore[misc]
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        if not 0 <= self.priority <= 100:
            raise RuntimeError("Assertion failed: Invalid priority value")
        _check_duration(self.duration_ms)


class KvCacheRetentionConfig(class_of("KvCacheRetentionConfig")):  # type: ignore[misc]
    TokenRangeRetentionConfig = _TokenRangeRetentionConfig

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        _check_duration(self.decode_duration_ms)
        for before, after in itertools.pairwise(self.token_range_retention_configs):
            if before.token_end is None or before.token_end > after.token_start:
                raise RuntimeError("Assertion failed: Token ranges are overlapping")


def _check_duration(value: Any) -> None:
    if value is not None and not isinstance(value, timedelta):
        raise TypeError(f"incompatible function arguments: {value!r}")
