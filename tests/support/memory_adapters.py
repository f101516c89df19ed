"""Adapters that lie in no file: what scheduling and loading make of an adapter, without one that computes."""

from __future__ import annotations

import hashlib

import numpy as np

from trierarch.builder.adapter import AdapterManifest, AdapterTensors
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import DType
from trierarch.python_backend.adapters.adapter import Adapter


class MemorySource:
    """A version whose tensors are `num_bytes` zeros; `fault` says why they cannot be read."""

    def __init__(self, label: str, num_bytes: int = 4, fault: str | None = None) -> None:
        """Versions of equal `label` are equal."""
        self.num_bytes = num_bytes
        self.fault = fault
        self.num_reads = 0
        self.is_closed = False
        self.manifest = AdapterManifest(
            digest=hashlib.sha256(label.encode()).hexdigest(), rank=1, dtype=DType.FLOAT32, pieces=("q",), source=label
        )

    def read(self) -> AdapterTensors:
        """The zeros."""
        assert not self.is_closed
        self.num_reads += 1
        if self.fault is not None:
            raise AdapterError(self.fault)
        return AdapterTensors(self.manifest, {"layers.0.q.a": np.zeros(self.num_bytes, np.uint8)})

    def close(self) -> None:
        """It cannot be read any more."""
        self.is_closed = True


def make_adapter(name: str, version: int = 0, num_bytes: int = 4, fault: str | None = None) -> Adapter:
    """Version `version` of the adapter `name`."""
    return Adapter(name, MemorySource(f"{name} {version}", num_bytes, fault), num_bytes)
