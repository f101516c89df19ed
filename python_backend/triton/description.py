"""What a model that holds an executor says of itself to a gateway, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.triton.responses import NamedArray


def description(manifest: EngineManifest, adapters: Sequence[str], has_chat_template: bool) -> list[NamedArray]:
    """The arrays of the answer to a request with `describe`.

    adapters: names that the operator registered; whether each can be used is known once it is asked for.
    """
    limits = manifest.limits
    told = {
        "name": manifest.name,
        "digest": manifest.digest,
        "vocab_size": manifest.architecture.vocab_size,
        "max_seq_len": limits.max_seq_len,
        "max_batch_size": limits.max_batch_size,
        "max_queue_size": limits.max_queue_size,
        "has_chat_template": has_chat_template,
        "makes_embeddings": manifest.pooling is not None,
        "adapters": list(adapters),
    }
    return [("description", np.array([json.dumps(told).encode()], np.object_))]
