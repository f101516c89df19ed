"""What is measured of a service: the queries that scaling, alerts and the dashboard share.

Scaling follows the queue first and the KV cache as a guard, never CPU or a GPU's duty cycle: a decoding GPU is busy
at any load. A series that comes from the model's own pod is gone when the pod is: none of these can wake a service from zero.
"""

from __future__ import annotations

from typing import Final

from trierarch.kserve.series import Series
from trierarch.kserve.spec import DeploySpec

SERVICE_LABEL: Final = "trierarch_service"
"""Put on every series by the PodMonitor: the service's name."""
KV_PERCENT: Final = 100


def series_of(spec: DeploySpec) -> Series:
    """The series of the pods of `spec`."""
    return Series({"namespace": spec.namespace, SERVICE_LABEL: spec.name})


def selector(spec: DeploySpec, **labels: str) -> str:
    """The matchers of the series of `spec`, in braces."""
    return series_of(spec).matching(**labels)


def waiting_query(spec: DeploySpec) -> str:
    """Requests that wait, over all replicas: what an autoscaler divides by its target gives replicas."""
    return series_of(spec).gauge("nv_trt_llm_request_metrics", request_type="waiting")


def kv_query(spec: DeploySpec) -> str:
    """Percent of KV blocks in use, summed over replicas: divided by the target a replica it gives replicas, too."""
    fraction = selector(spec, kv_cache_block_type="fraction")
    return f"{KV_PERCENT} * sum(nv_trt_llm_kv_cache_block_metrics{fraction})"
