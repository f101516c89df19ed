"""FlashInfer where it is installed: which releases are known here, which models it takes, and whether it holds a trial.

What is called of it is recorded by release in tests/data/flashinfer_signatures.json, and held to that. No call of it has run
on a GPU yet, so every load begins with one: a small step beside torch's own operators (attention_trial.py).
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import torch

from trierarch.builder.manifest import DType, EngineManifest, KvType
from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.attention_trial import AttentionTrial
from trierarch.python_backend.executors.torch.flashinfer_attention import FlashInferAttention
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES

logger = logging.getLogger(__name__)

DISTRIBUTION: Final = "flashinfer-python"
RELEASES: Final = ("0.5", "0.6", "0.7")
HEAD_DIMS: Final = (64, 128, 256)
"""Those that all these releases bring kernels of."""
_DTYPES: Final = (DType.BFLOAT16, DType.FLOAT16)


def open_flashinfer(manifest: EngineManifest, device: torch.device, num_processors: int) -> FlashInferAttention | None:
    """Attention by FlashInfer; None where it cannot serve this model, and the log says why."""
    found = obstacle(manifest)
    if found is None:
        logger.info("%s: trying FlashInfer, which compiles kernels that it did not bring along", manifest.name)
        attention, found = _tried(manifest, device, num_processors)
        if attention is not None:
            logger.info(
                "%s: %s held its trial; steps that are recorded are left to our kernel", manifest.name, attention.label
            )
            return attention
        logger.warning("%s: FlashInfer is installed, and not used: %s", manifest.name, found)
    else:
        logger.info("%s: without FlashInfer: %s", manifest.name, found)
    return None


def obstacle(manifest: EngineManifest) -> str | None:
    """Why FlashInfer cannot run a model's attention, as far as is known without asking it; None where it can."""
    installed = installed_version()
    if installed is None:
        return f"{DISTRIBUTION} is not installed"
    if _release(installed) not in RELEASES:
        return f"{DISTRIBUTION} is {installed}, and {', '.join(RELEASES)} are known here"
    if manifest.dtype not in _DTYPES:
        return f"activations are {manifest.dtype}; it takes {' and '.join(_DTYPES)}"
    kv_type = manifest.kv_cache.dtype
    if kv_type.is_quantized:
        return f"keys and values are {kv_type} with a scale for each token and head, which only our kernels know"
    if kv_type != KvType(manifest.dtype):
        return f"keys and values are {kv_type} beside activations in {manifest.dtype}"
    head_dim = manifest.architecture.head_dim
    if head_dim not in HEAD_DIMS:
        return f"heads of {head_dim} elements; it takes {', '.join(map(str, HEAD_DIMS))}"
    return None


def installed_version() -> str | None:
    """None is not installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def _tried(
    manifest: EngineManifest, device: torch.device, num_processors: int
) -> tuple[FlashInferAttention | None, str | None]:
    """The backend, or else why it cannot be trusted here."""
    architecture = manifest.architecture
    shape = AttentionShape(architecture.num_kv_heads, architecture.attention_scale, architecture.attention_softcap)
    trial = AttentionTrial(
        num_heads=architecture.num_heads,
        head_dim=architecture.head_dim,
        shape=shape,
        block_size=manifest.kv_cache.block_size,
        has_windows=frozenset(layer.window is not None for layer in architecture.layers),
        dtype=TORCH_DTYPES[manifest.dtype],
        device=device,
    )
    try:
        attention = FlashInferAttention(
            _wrapper(),
            f"FlashInfer {installed_version()}",
            architecture.num_heads,
            architecture.head_dim,
            shape,
            device,
            num_processors,
        )
        found = trial.failure(attention)
    except Exception as error:  # noqa: BLE001 - a library and its compiler may raise anything, and ours serve without
        found = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return (attention, None) if found is None else (None, found)


def _wrapper() -> Any:
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    return BatchPrefillWithPagedKVCacheWrapper


def _release(name: str) -> str:
    return ".".join(name.split(".")[:2])
