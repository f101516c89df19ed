"""Attention alone: the harness on a CPU, and its arithmetic by hand."""

from __future__ import annotations

import pytest
import torch

from trierarch.benchmarks.attention import QUICK, Kind, measure


def test_what_a_step_reads_and_multiplies() -> None:
    kind = Kind("", ((2, 1, 40), (1, 3, 30)))
    assert kind.kv_bytes == (2 * 41 + 33) * 2 * 8 * 128 * 2
    assert kind.flops == (2 * 41 + 31 + 32 + 33) * 4 * 32 * 128
    plan = kind.plan()
    assert [(item.num_tokens, item.start) for item in plan.scheduled] == [(1, 40), (1, 40), (3, 30)]
    assert sorted(block for item in plan.scheduled for block in item.sequence.block_table) == list(range(3 * 3))


@torch.inference_mode()
def test_every_kind_is_measured_by_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trierarch.benchmarks.gpu_limits.NUM_RUNS", 1)
    rows = list(measure(torch.device("cpu"), QUICK))
    assert [(row["step"], row["attention"]) for row in rows] == [(kind.name, "torch's operators") for kind in QUICK]
    assert all(row["layer_us"] > 0 for row in rows)
