from __future__ import annotations

import json
import re

import pytest

from support.named_metrics import metrics_in, our_metrics, our_pages
from trierarch.orchestrator import cli
from trierarch.orchestrator.serve_dashboard import serve_dashboard


def queries(job: str = "trierarch") -> list[str]:
    return [target["expr"] for panel in serve_dashboard(job)["panels"] for target in panel["targets"]]


def test_every_metric_that_is_named_exists_and_none_of_sleep_is_forgotten() -> None:
    named = metrics_in(queries())
    assert named <= our_metrics(), named - our_metrics()
    kinds = dict(re.findall(r"^# TYPE (trierarch_sleep_\w+) (\w+)$", our_pages(), re.MULTILINE))
    del kinds["trierarch_sleep_phase"]
    told = {name for name in kinds if not name.endswith("_created")}  # by prometheus_client, of each histogram
    assert {f"{name}_bucket" if kinds[name] == "histogram" else name for name in told} <= named


def test_it_is_printed_for_a_job_of_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["dashboard", "--job", 'the "big" one'])
    assert not exit_.value.code
    document = json.loads(capsys.readouterr().out)
    assert document == serve_dashboard('the "big" one')
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", document["uid"])
    assert all(r'job="the \"big\" one"' in query for query in queries('the "big" one'))
