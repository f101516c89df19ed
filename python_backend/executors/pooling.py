"""Pooler: the embedding of a text, of the states of its tokens; the same for every executor, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trierarch.builder.manifest import WEIGHTS_NAME, EngineManifest, Pooling
from trierarch.builder.safetensors_file import SafetensorsFile
from trierarch.python_backend.executors.sampling.token_history import Floats


class Pooler:
    """Norms states and adds them up. Nobody compares embeddings by their length, so the mean is no more than the sum."""

    def __init__(self, kind: Pooling, norm: Floats, eps: float) -> None:
        """norm: (hidden) float32, the weight of the last norm."""
        self._kind, self._norm, self._eps = kind, norm, eps

    def pooled(self, hidden: Floats, is_end: bool) -> Floats:
        """What a share of a prompt adds to its embedding: (hidden).

        hidden: (n, hidden) float32, before the last norm; is_end: whether it is the prompt's last share.
        """
        if self._kind is Pooling.LAST and not is_end:
            return np.zeros_like(self._norm)
        rows = hidden[-1:] if self._kind is Pooling.LAST else hidden
        scale = 1.0 / np.sqrt(np.square(rows).mean(axis=1, keepdims=True) + self._eps)
        pooled: Floats = (rows * scale * self._norm).sum(axis=0, dtype=np.float32)
        return pooled


def open_pooler(engine: Path, manifest: EngineManifest) -> Pooler | None:
    """The engine's; None where it makes no embeddings. Its weights were checked."""
    if manifest.pooling is None:
        return None
    with SafetensorsFile(engine / WEIGHTS_NAME) as file:
        norm = np.array(file.map()["norm.weight"], np.float32)
    return Pooler(manifest.pooling, norm, manifest.architecture.norm_eps)
