"""What GPUs hold: one row a product, from NVIDIA's data sheets (memory in units of 10^9 bytes, the smaller reading)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trierarch.builder.errors import ConfigError
from trierarch.kserve.spec import Gpu


@dataclass(frozen=True, slots=True)
class GpuProduct:
    """One kind of GPU."""

    memory: int
    """Bytes."""
    architecture: str
    """As an engine's `requires.device` names it."""


GB: Final = 1_000_000_000
PRODUCTS: Final = {
    "T4": GpuProduct(16 * GB, "sm_75"),
    "A10": GpuProduct(24 * GB, "sm_86"),
    "A40": GpuProduct(48 * GB, "sm_86"),
    "A100-40GB": GpuProduct(40 * GB, "sm_80"),
    "A100-80GB": GpuProduct(80 * GB, "sm_80"),
    "L4": GpuProduct(24 * GB, "sm_89"),
    "L40S": GpuProduct(48 * GB, "sm_89"),
    "H100-80GB": GpuProduct(80 * GB, "sm_90"),
    "H100-NVL": GpuProduct(94 * GB, "sm_90"),
    "H200": GpuProduct(141 * GB, "sm_90"),
    "B200": GpuProduct(180 * GB, "sm_100"),
}


def memory_of(gpu: Gpu) -> int:
    """Bytes of one of them.

    Raises:
        ConfigError: nobody says.
    """
    if gpu.memory is not None:
        return gpu.memory
    product = PRODUCTS.get(gpu.product)
    if product is None:
        raise ConfigError(
            f"gpu.product is {gpu.product!r}, whose memory is not known; use one of {', '.join(PRODUCTS)}, or say gpu.memory"
        )
    return product.memory
