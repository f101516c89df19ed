from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.deployments import small_spec, weighty_engine
from trierarch.builder.manifest import Quantization, WeightType
from trierarch.kserve.cold_start import PROBE_PERIOD, cold_start_budget, knative_timeout, mends, warnings

RATES = {
    "node_provision": 100,
    "image_pull": 50,
    "storage_bandwidth": 100_000_000,
    "load_bandwidth": 1_000_000_000,
    "server_start": 5,
    "warm_up": 7,
}


def phases(storage: dict[str, Any], num_bytes: int = 3_000_000_000) -> dict[str, float]:
    budget = cold_start_budget(small_spec(storage=storage, cold_start=RATES), weighty_engine(num_bytes))
    return {phase.name: phase.seconds for phase in budget.phases}


def test_a_start_is_the_sum_of_its_phases() -> None:
    budget = cold_start_budget(small_spec(cold_start=RATES), weighty_engine(3_000_000_000))
    assert {phase.name: phase.seconds for phase in budget.phases} == {
        "node": 100,
        "image pull": 50,
        "fetch": 30,
        "server start": 5,
        "load": 3,
        "warm-up": 7,
    }
    assert budget.total == 195
    assert budget.container == 15
    assert (budget.deadline, budget.container_deadline) == (390, 30)
    assert budget.probe_failures * PROBE_PERIOD == 30


def test_what_is_mounted_is_read_once_while_loading() -> None:
    seconds = phases({"uri": "pvc://engines/tiny"})
    assert (seconds["fetch"], seconds["load"]) == (0, 30)


def test_what_nodes_keep_is_not_fetched() -> None:
    seconds = phases({"uri": "s3://engines/tiny", "node_cache": ["gpu-nodes"]})
    assert (seconds["fetch"], seconds["load"]) == (0, 3)


def test_each_phase_says_what_it_was_worked_out_from() -> None:
    spec = small_spec(cold_start={"storage_bandwidth": 50_000_000})
    sources = {phase.name: phase.source for phase in cold_start_budget(spec, weighty_engine()).phases}
    assert sources["fetch"] == "3000 MB (manifest) / 50 MB/s (stated), the first time on a node"
    assert sources["load"] == "3000 MB (manifest) / 1000 MB/s (assumed)"
    assert sources["node"] == "assumed"


@given(
    num_bytes=st.integers(1, 10**12),
    more=st.integers(0, 10**12),
    margin=st.floats(1, 10),
    warm_up=st.floats(0, 1000),
)
def test_deadlines_cover_what_was_reckoned_and_grow_with_the_engine(
    num_bytes: int, more: int, margin: float, warm_up: float
) -> None:
    spec = small_spec(cold_start={"margin": margin, "warm_up": warm_up})
    smaller, larger = (cold_start_budget(spec, weighty_engine(size)) for size in (num_bytes, num_bytes + more))
    assert smaller.total <= larger.total
    assert larger.deadline >= larger.total * margin
    assert larger.probe_failures * PROBE_PERIOD >= larger.container_deadline >= larger.container * margin


def test_a_broken_objective_names_what_would_mend_it_the_most_first() -> None:
    spec = small_spec(profile="external", cold_start=RATES | {"ttft_objective": 60}, storage={"uri": "s3://a/b"})
    engine = weighty_engine()
    budget = cold_start_budget(spec, engine)

    (warning,) = warnings(spec, engine, budget)
    assert "waits 195 s, and the objective is 60 s" in warning
    for way in ("--min-replicas 1", "--node-cache", "oci+native", "quantise", "--node-provision 0", "--image-pull 0"):
        assert way in warning
    savings = [mend.saves for mend in mends(spec, engine, budget)]
    assert savings == sorted(savings, reverse=True)


def test_what_is_done_already_is_not_advised() -> None:
    quantised = weighty_engine(quantization=Quantization(weights=WeightType.INT8))
    spec = small_spec(storage={"uri": "pvc://engines/tiny"}, cold_start=RATES | {"node_provision": 0})
    advice = " ".join(mend.what for mend in mends(spec, quantised, cold_start_budget(spec, quantised)))
    assert "quantise" not in advice
    assert "--node-cache" not in advice
    assert "--min-replicas" not in advice
    assert "--node-provision" not in advice


@pytest.mark.parametrize(
    "changes",
    [
        {"storage": {"uri": "oci+native://r.example/e:1"}},
        {"profile": "llm", "storage": {"uri": "s3://a/b"}},
        {"storage": {"uri": "s3://a/b", "adapters": "pvc://shelf"}},
    ],
)
def test_what_would_be_refused_is_not_advised(changes: dict[str, Any]) -> None:
    spec, engine = small_spec(**changes), weighty_engine()
    advice = " ".join(mend.what for mend in mends(spec, engine, cold_start_budget(spec, engine)))
    assert "--node-provision" in advice
    assert "--node-cache" not in advice


def test_one_fixed_replica_never_starts_under_load() -> None:
    spec = small_spec(cold_start={"ttft_objective": 1}, scale={"max_replicas": 1})
    assert not warnings(spec, weighty_engine(), cold_start_budget(spec, weighty_engine()))


def test_knatives_limit_of_a_request_is_told() -> None:
    spec, engine = small_spec(profile="knative", cold_start=RATES), weighty_engine()
    budget = cold_start_budget(spec, engine)
    assert knative_timeout(spec, budget) == 195 + 540
    (warning,) = warnings(spec, engine, budget)
    assert "set it to 735 in config-defaults" in warning

    short = small_spec(profile="knative", cold_start=RATES, streams={"longest": 400})
    assert not warnings(short, engine, cold_start_budget(short, engine))


def test_the_deadline_that_kserve_writes_is_told() -> None:
    spec = small_spec(cold_start=RATES | {"node_provision": 700})
    (warning,) = warnings(spec, weighty_engine(), cold_start_budget(spec, weighty_engine()))
    assert "ProgressDeadlineExceeded" in warning
