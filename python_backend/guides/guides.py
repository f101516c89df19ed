"""Guides: all that an executor needs of guided decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from trierarch.builder.manifest import TOKENIZER_NAME
from trierarch.python_backend.guides.compiler import GuideCompiler
from trierarch.python_backend.guides.masking import Masking
from trierarch.python_backend.guides.protocol import Vocabulary

_MOST_BYTES: Final = 1 << 30
"""Of data that the process may hold in which guides are tried; the one that makes masks may hold twice as much."""
_NICENESS: Final = 5


class Guides:
    """Guides of one vocabulary. No process runs before the first guide comes."""

    def __init__(self, vocabulary_of: Path, vocab_size: int, end_ids: tuple[int, ...]) -> None:
        """vocabulary_of: an engine with a tokenizer. `end_ids` are the engine's, for requests that name none."""
        engine = str(vocabulary_of)
        self.masking = Masking(
            Vocabulary(engine, vocab_size, 2 * _MOST_BYTES),
            end_ids,
            lambda guide, error: self.compiler.refuse(guide, error),
        )
        self.compiler = GuideCompiler(
            Vocabulary(engine, vocab_size, _MOST_BYTES, _NICENESS), self.masking, self._changed
        )
        self._on_change: Callable[[], None] = _nobody

    @classmethod
    def of(cls, engine: Path, vocab_size: int, end_ids: tuple[int, ...]) -> Guides | None:
        """The engine's; None where it has no tokenizer."""
        return cls(engine, vocab_size, end_ids) if (engine / TOKENIZER_NAME).is_file() else None

    def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change`, on another thread, whenever it is known of a guide whether it can be served."""
        self._on_change = on_change

    def close(self) -> None:
        """End all processes. Idempotent."""
        self.masking.close()
        self.compiler.close()

    def _changed(self) -> None:
        self._on_change()


def _nobody() -> None:
    """Nobody listens."""
