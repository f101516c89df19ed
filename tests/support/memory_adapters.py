"""Adapters that lie in no file: what scheduling and loading make of an adapter, without one that computes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from trierarch.builder.adapter import AdapterManifest, AdapterTensors
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import DType
from trierarch.python_backend.adapters.adapter import Adapter


def seed_of(digest: str) -> int:
    """What an adapter adds to the model of `checking_runner.next_token`; 0 for the base model, and for no other."""
    return 1 + int(digest[:6], 16) if digest else 0


@dataclass(frozen=True, slots=True)
class ToyWeights:
    """An adapter as a CheckingRunner has it. Implements Arranged."""

    digest: str
    num_bytes: int


def arrange(tensors: AdapterTensors) -> ToyWeights:
    """As a runner does."""
    return ToyWeights(tensors.manifest.digest, tensors.num_bytes)


def arrange_draft(adapter: Adapter, tensors: AdapterTensors) -> ToyWeights | None:
    """The draft model runs with every other adapter, in a byte."""
    return ToyWeights(adapter.digest, 1) if seed_of(adapter.digest) % 2 else None


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


def make_adapter(
    name: str, version: int = 0, num_bytes: int = 4, fault: str | None = None, guess: int | None = None
) -> Adapter:
    """Version `version` of the adapter `name`; it looks as if it had `guess` bytes."""
    return Adapter(name, MemorySource(f"{name} {version}", num_bytes, fault), num_bytes if guess is None else guess)
