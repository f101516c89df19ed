"""What `trierarch deploy` renders of a small spec, profile by profile, as files that can be reviewed and applied.

Rewritten by `pytest tests/golden/test_deploy.py --regenerate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.deployments import small_spec, weighty_engine
from trierarch.kserve.render import render
from trierarch.kserve.spec import Profile

GOLDEN = Path(__file__).parent / "deploy"
SPECS: dict[str, dict[str, Any]] = {
    "knative": {"profile": Profile.KNATIVE},
    "keda-canary": {
        "profile": Profile.KEDA,
        "canary": {"uri": "oci+native://registry.example/engines/tiny:2", "percent": 10},
    },
    "external": {
        "profile": Profile.EXTERNAL,
        "storage": {"uri": "pvc://engines/tiny", "adapters": "pvc://adapters", "service_account": "reader"},
        "access": {"host": "tiny.example.com", "gateway": "gateways/main"},
        "cold_start": {"ttft_objective": 30, "node_provision": 0, "storage_bandwidth": 1_000_000_000},
        "secret_env": {"API_KEY": {"secret": "keys", "key": "api"}},
    },
    "keda-cached": {
        "profile": Profile.KEDA,
        "gpu": {"product": "H200", "node_selector": {"pool": "h200"}},
        "storage": {"uri": "s3://engines/tiny", "node_cache": ["h200-nodes"]},
    },
    "llm": {"profile": Profile.LLM, "storage": {"uri": "pvc://engines/tiny", "adapters": "pvc://adapters/tiny"}},
    "llm-0.21": {"profile": Profile.LLM, "kserve_version": "0.21", "gpu": None},
}

DASHBOARD = "configmap-tiny-dashboard.yaml"
DASHBOARD_IN = "knative"
"""It is long, and the same in all profiles but for those who wait: one copy is enough to review."""


@pytest.mark.parametrize("name", SPECS)
def test_what_is_rendered_is_what_was_reviewed(name: str, regenerate: bool) -> None:
    files = render(small_spec(**SPECS[name]), weighty_engine()).files()
    if name != DASHBOARD_IN:
        del files[DASHBOARD]
    folder = GOLDEN / name
    if regenerate:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == files


def test_nothing_stale_lies_there() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(SPECS)
