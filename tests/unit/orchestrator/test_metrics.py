from __future__ import annotations

import pytest

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.metrics import Metrics

PAGE = """\
# HELP nv_trt_llm_kv_cache_block_metrics TRT LLM KV cache block metrics
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 3
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 100
"""


def test_a_sample_is_found_by_some_of_its_labels() -> None:
    metrics = Metrics.parse(PAGE)

    assert metrics.value("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="used") == 3


@pytest.mark.parametrize("labels", [{}, {"kv_cache_block_type": "free"}])
def test_none_or_many_samples_are_no_value(labels: dict[str, str]) -> None:
    with pytest.raises(KeyError):
        Metrics.parse(PAGE).value("nv_trt_llm_kv_cache_block_metrics", **labels)


def test_a_page_that_is_not_there_is_our_error() -> None:
    with pytest.raises(ResourceError, match="is the server running"):
        Metrics.read("http://127.0.0.1:9/metrics")
