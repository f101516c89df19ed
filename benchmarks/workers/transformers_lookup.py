"""Hugging Face transformers with its prompt look-up decoding, which takes one prompt at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trierarch.benchmarks.workers.protocol import serve
from trierarch.benchmarks.workers.transformers import TransformersWorker


class TransformersLookupWorker(TransformersWorker):
    """Drafts what followed the same tokens before."""

    options: ClassVar[Mapping[str, Any]] = {"prompt_lookup_num_tokens": 4}


if __name__ == "__main__":
    serve(TransformersLookupWorker)
