"""Pages of several servers as one that Prometheus reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from trierarch.orchestrator.sleep.merged_pages import merged

PAGE = (
    b"# HELP requests How many\n# TYPE requests gauge\n"
    b'requests{model="tensorrt_llm",version="1"} %d\n'
    b"# HELP uptime Seconds\n# TYPE uptime counter\nuptime 3\n"
    b'# HELP waits How long\n# TYPE waits histogram\nwaits_bucket{le="+Inf"} 2\nwaits_count{} 2\nwaits_sum{} 0.5\n'
)


def test_every_sample_says_whose_it_is_and_every_family_is_there_once() -> None:
    page = merged({"a": PAGE % 1, 'b"\\': PAGE % 2, "asleep": b""}).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    requests = {sample.labels["engine"]: sample.value for sample in families["requests"].samples}
    assert requests == {"a": 1, 'b"\\': 2}
    assert {sample.labels["model"] for sample in families["requests"].samples} == {"tensorrt_llm"}
    assert {sample.name for sample in families["waits"].samples} == {"waits_bucket", "waits_count", "waits_sum"}
    assert len(families["uptime"].samples) == 2
    assert page.count("# TYPE requests ") == 1
