"""llama.cpp with its server's speculation by n-grams of the sequence itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from trierarch.benchmarks.workers.llamacpp import OPTIONS, LlamaCppWorker
from trierarch.benchmarks.workers.protocol import serve

NGRAM_OPTIONS: Final = {
    "--spec-type": "ngram-simple",
    "--spec-ngram-simple-size-n": "3",
    "--spec-ngram-simple-size-m": "8",
}


class LlamaCppNgramWorker(LlamaCppWorker):
    """Looks three tokens up and drafts the eight behind them."""

    options: ClassVar[Mapping[str, str | None]] = {**OPTIONS, **NGRAM_OPTIONS}


if __name__ == "__main__":
    serve(LlamaCppNgramWorker)
