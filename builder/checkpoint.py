"""Checkpoint: the one face that every source of weights shows to the builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from trierarch.builder.manifest import CHAT_TEMPLATE_NAME, TOKENIZER_NAME, Tokens

if TYPE_CHECKING:
    import torch

    from trierarch.builder.codes import Codes, CodeType

PICKLED_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Formats that run code when they are read; they are refused whatever they hold."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A checkpoint's tokenizer, ready to be written into an engine."""

    tokenizer_json: bytes
    """In the format of Hugging Face's `tokenizers`."""
    chat_template: str | None
    tokens: Tokens

    def files(self) -> dict[str, bytes]:
        """Name in an engine -> content: what the text layer reads."""
        files = {TOKENIZER_NAME: self.tokenizer_json}
        if self.chat_template is not None:
            files[CHAT_TEMPLATE_NAME] = self.chat_template.encode()
        return files


class Checkpoint(Protocol):
    """A pretrained model as it came: a Hugging Face configuration, named tensors and a tokenizer."""

    @property
    def name(self) -> str:
        """What people call it; never a path."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The `config.json`, or what one would say."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by its Hugging Face name, known without reading any."""
        ...

    @property
    def quantization(self) -> str | None:
        """Type that most of the weights were stored in, where `load` dequantises."""
        ...

    @property
    def code_types(self) -> Mapping[str, CodeType]:
        """Of the tensors, by name, that `load_codes` can give as they are stored."""
        ...

    @property
    def needless(self) -> frozenset[str]:
        """Names of tensors that change nothing: a model that has no such weights may leave them out."""
        ...

    @property
    def has_folded_norms(self) -> bool:
        """Whether a norm that multiplies by 1 + w is stored as that sum."""
        ...

    def load(self, name: str) -> torch.Tensor:
        """One tensor, in a floating type, shaped as `shapes` says.

        Raises:
            CheckpointError: its bytes cannot be read, or are of a type that is not floating.
        """
        ...

    def load_codes(self, name: str) -> Codes:
        """One tensor of `code_types`, its rows in the same order as `load` gives them.

        Raises:
            CheckpointError: a scale or an fp8 number is not finite.
        """
        ...

    def tokenizer(self, vocab_size: int) -> TokenizerFiles:
        """The tokenizer of a model with `vocab_size` embeddings.

        Raises:
            CheckpointError: there is none, or one that cannot be read.
        """
        ...
