"""What an engine does, as panels: the same wherever it is served."""

from __future__ import annotations

from trierarch.kserve.grafana import Panel, quantiles
from trierarch.kserve.objects.resource import MODEL
from trierarch.kserve.series import Series


def engine_panels(series: Series) -> tuple[Panel, ...]:
    """Left to right, row by row: load and memory, latency, throughput; then guessing and adapters."""
    requests, blocks = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"
    accepted, guessed = (series.rate(f"trierarch_{name}draft_tokens_total") for name in ("accepted_", ""))
    in_use = f"avg({blocks}{series.matching(kv_cache_block_type='fraction')})"
    statuses = ("registered", "loaded", "active")
    return (
        Panel(
            "Requests",
            "short",
            {kind: series.gauge(requests, request_type=kind) for kind in ("waiting", "scheduled", "context")},
        ),
        Panel("KV blocks", "percentunit", {"in use": in_use}),
        Panel(
            "Tokens a second",
            "short",
            {
                "prompt": series.rate("nv_llm_input_token_len_sum"),
                "output": series.rate("nv_llm_output_token_len_sum"),
            },
        ),
        quantiles("Time to first token", series, "trierarch_time_to_first_token_seconds"),
        quantiles("Between tokens", series, "trierarch_inter_token_latency_seconds"),
        quantiles("In the queue", series, "trierarch_queue_time_seconds"),
        Panel(
            "Requests a second",
            "reqps",
            {
                "answered": series.rate("nv_inference_request_success", model=MODEL),
                "failed": series.rate("nv_inference_request_failure", model=MODEL),
            },
        ),
        Panel("Guesses accepted", "percentunit", {"accepted": f"{accepted} / {guessed}"}),
        Panel(
            "Adapters",
            "short",
            {status: series.gauge("trierarch_adapters", status=status) for status in statuses}
            | {"waited for": series.gauge("trierarch_adapters_waiting")},
        ),
    )
