"""The padded, grouped, tiled attention against one sequence, one head and one query at a time."""

from __future__ import annotations

import pytest
import torch

from support.ragged_attention import RaggedCase
from trierarch.builder.manifest import KvType
from trierarch.python_backend.executors.torch import attention_tile
from trierarch.python_backend.executors.torch.attention import EagerAttention

CPU = torch.device("cpu")


@pytest.mark.parametrize("window", [None, 1, 3, 16])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference(
    seed: int, softcap: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_tile, "MAX_QUERIES", 7)  # so that short prompts are cut too
    found, expected = RaggedCase(seed, softcap=softcap, window=window).attend(EagerAttention(), CPU)
    torch.testing.assert_close(found, expected)


def test_reads_what_codes_stand_for() -> None:
    found, expected = RaggedCase(1, kv_type=KvType.INT8).attend(EagerAttention(), CPU)
    torch.testing.assert_close(found, expected)
