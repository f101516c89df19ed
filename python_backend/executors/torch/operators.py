"""Operators: what computes attention, adapters and layers on a device; the one place that decides."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from trierarch.builder.manifest import EngineManifest, KvType
from trierarch.python_backend.executors.torch.adapted_rows import AdapterBackend, StaticAdapterBackend
from trierarch.python_backend.executors.torch.attention import EagerAttention
from trierarch.python_backend.executors.torch.attention_backend import AnyAttentionBackend, StaticAttentionBackend
from trierarch.python_backend.executors.torch.eager_layers import EagerLayers
from trierarch.python_backend.executors.torch.flashinfer_library import open_flashinfer
from trierarch.python_backend.executors.torch.layer_backend import LayerBackend
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters

logger = logging.getLogger(__name__)

_MIN_CAPABILITY: Final = {KvType.FP8: (8, 9)}
"""The first GPUs whose kernels read such keys and values."""
_MIN_CAPABILITY_OF_ALL: Final = (8, 0)
"""Ampere: the first whose tensor cores multiply bfloat16."""


@dataclass(frozen=True, slots=True)
class Operators:
    """Chosen once, when a model is loaded."""

    attention: AnyAttentionBackend
    adapters: AdapterBackend
    static_attention: StaticAttentionBackend | None = None
    """The same for steps that can be recorded; None where there are none."""
    static_adapters: StaticAdapterBackend | None = None
    """`adapters`, where their steps can be recorded."""
    layers: LayerBackend = field(default_factory=EagerLayers)

    def __str__(self) -> str:
        return f"attention by {self.attention.label}, adapters by {self.adapters.label}, layers by {self.layers.label}"

    @classmethod
    def eager(cls) -> Operators:
        """The reference: torch's own, on any device."""
        return cls(EagerAttention(), LoopedAdapters())

    @classmethod
    def best(cls, manifest: EngineManifest, device: torch.device) -> Operators:
        """As `ours`, and on a CUDA device FlashInfer's attention where it serves, but of steps that are recorded."""
        operators = cls.ours(manifest, device)
        if device.type != "cuda":
            return operators
        attention = open_flashinfer(manifest, device, _num_processors(device))
        return operators if attention is None else replace(operators, attention=attention)

    @classmethod
    def ours(cls, manifest: EngineManifest, device: torch.device) -> Operators:
        """Kernels of ours on a CUDA device, torch's operators elsewhere.

        Under the interpreter of Triton's language (TRITON_INTERPRET=1, which is its own) the kernels run on a CPU too.
        """
        obstacle = _obstacle(manifest, device)
        if obstacle is not None:
            if device.type == "cuda":
                logger.warning("%s runs without kernels of ours, slowly: %s", manifest.name, obstacle)
            return cls.eager()
        from trierarch.python_backend.executors.torch.kernels.fused_layers import FusedLayers
        from trierarch.python_backend.executors.torch.kernels.grouped_adapters import GroupedAdapters
        from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention

        architecture = manifest.architecture
        num_processors = _num_processors(device)
        sizes = architecture.num_heads // architecture.num_kv_heads, num_processors
        attention = RaggedAttention(*sizes)
        static_attention = RaggedAttention(*sizes, max_seq_len=manifest.limits.max_seq_len)
        layers = FusedLayers(device, num_processors)
        if manifest.lora is None:
            return cls(attention, LoopedAdapters(), static_attention, layers=layers)
        adapters = GroupedAdapters(architecture, manifest.lora, device)
        return cls(attention, adapters, static_attention, adapters, layers)


def _obstacle(manifest: EngineManifest, device: torch.device) -> str | None:
    """Why a model's kernels cannot run; None where they can."""
    if device.type not in ("cuda", "cpu"):
        return f"there are none for {device.type}"
    if device.type == "cpu" and "TRITON_INTERPRET" not in os.environ:
        return "there are none for a CPU"
    try:
        from trierarch.python_backend.executors.torch.kernels import paged_attention
    except ImportError as error:
        return f"Triton's language is not installed ({error}); pip install triton"
    if device.type == "cpu" and not paged_attention.is_interpreted():
        return "there are none for a CPU"
    if device.type == "cuda":
        needed = _MIN_CAPABILITY.get(manifest.kv_cache.dtype, _MIN_CAPABILITY_OF_ALL)
        capability = torch.cuda.get_device_capability(device)
        if capability < needed:
            return (
                f"they need compute capability {needed[0]}.{needed[1]} and this GPU has {capability[0]}.{capability[1]}"
            )
    return paged_attention.obstacle(manifest.architecture)


def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
