"""Holds our metrics page against the categories that TensorRT-LLM's own test of its metrics knows, by its own parser.

python known_metrics.py CHECKOUT METRICS_URL
"""

from __future__ import annotations

import sys
import tempfile
import urllib.request
from pathlib import Path


def main(checkout: Path, url: str) -> None:
    """Raise AssertionError for a category of ours that it does not know, or one of in-flight batching that we lack."""
    sys.path.insert(0, str(checkout / "ci/L0_backend_trtllm"))
    from custom_metrics_verification_tests import CustomMetricsTest, metric_to_stat_dict

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page"
        with urllib.request.urlopen(url) as response:
            page.write_bytes(response.read())
        found = CustomMetricsTest()._parse_triton_metrics(str(page), False)
    unasked = {"v1_specific_metric"}
    expected = {stat for key, stat in metric_to_stat_dict.items() if key.split("=")[0] not in unasked}
    assert set(found) <= expected
    print(f"{len(found)} categories; lacking: {sorted(expected - set(found)) or 'none'}")
    print("every category is known")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
