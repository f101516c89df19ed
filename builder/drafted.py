"""Drafted: the model that a draft is for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from trierarch.builder.checkpoint import Checkpoint, TokenizerFiles
from trierarch.builder.decoder import Decoder
from trierarch.builder.errors import CheckpointError, ConfigError, EngineError
from trierarch.builder.model import Model
from trierarch.builder.weight import Weight
from trierarch.builder.weights import plan_weights


@dataclass(frozen=True, slots=True)
class Drafted:
    """Whom the draft is for."""

    checkpoint: Checkpoint
    decoder: Decoder
    tokenizer: TokenizerFiles
    model: Model

    @property
    def vocab_size(self) -> int:
        """Every id below it may be shown to the draft, and no other may be guessed."""
        return self.decoder.architecture.vocab_size

    def embedding(self) -> Weight:
        """A copy of its embed.weight, unquantised."""
        return self._copy("embed.weight")

    def lm_head(self) -> Weight:
        """A copy of the matrix that makes its logits, unquantised, as lm_head.weight."""
        is_tied = self.decoder.architecture.tie_embeddings
        return replace(self._copy("embed.weight" if is_tied else "lm_head.weight"), name="lm_head.weight")

    def _copy(self, name: str) -> Weight:
        weights = plan_weights(self.decoder, self.checkpoint, self.model.dtype)
        return replace(next(one for one in weights if one.name == name), checkpoint=self.checkpoint)


@contextmanager
def about_draft(source: str) -> Iterator[None]:
    """Errors within say that they are about the draft."""
    try:
        yield
    except (CheckpointError, ConfigError, EngineError) as error:
        raise type(error)(f"draft is {source!r}: {error}") from error
