"""Grammars: guides compiled by xgrammar for one vocabulary, and matchers that follow outputs through them.

Only `worker.py` imports this. xgrammar's own package imports torch and transformers, 2.5 s and 220 MB, for what is not used
here; its compiled core needs neither, so that the core is loaded alone.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections import OrderedDict
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trierarch.python_backend.guides.json_schema import with_patterns_for_lengths
from trierarch.python_backend.request import GuideKind

_MOST_CACHED_BYTES: Final = 64 << 20
"""Of compiled grammars that nobody may be using."""
_RAW: Final = 0
"""The vocabulary is bytes as they are."""


@cache
def _load_core() -> Any:
    """xgrammar's compiled core: what its Python package calls `_core`."""
    spec = importlib.util.find_spec("xgrammar")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("xgrammar is not installed")
    package = types.ModuleType("xgrammar")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["xgrammar"] = package
    is_torch_new = "torch" not in sys.modules
    if is_torch_new:
        sys.modules["torch"] = None  # type: ignore[assignment]  # tvm_ffi imports it only where it is to be had
    try:
        importlib.import_module("xgrammar.load_binding")
        return importlib.import_module("xgrammar.tvm_ffi_binding")
    finally:
        if is_torch_new:
            del sys.modules["torch"]


class Grammars:
    """Compiles guides, each once."""

    def __init__(self, vocabulary: list[bytes]) -> None:
        """vocabulary: each token's bytes; none for those that stand for no text, which no grammar ever allows."""
        self._core = _load_core()
        self.vocab_size = len(vocabulary)
        # The end of an output is a token of its own, behind the vocabulary: which tokens end it is the request's word.
        tokens = [*vocabulary, b""]
        information = self._core.TokenizerInfo(tokens, _RAW, len(tokens), [self.vocab_size], False)
        self._compiler = self._core.GrammarCompiler(information, 1, False, -1)
        self._compiled: OrderedDict[tuple[GuideKind, str], Any] = OrderedDict()  # the longest unused first

    def compile(self, kind: GuideKind, text: str) -> Any:
        """The compiled guide. Raise RuntimeError, in xgrammar's words, where it cannot be."""
        key = (kind, text)
        compiled = self._compiled.pop(key, None) or self._compile(kind, text)
        self._compiled[key] = compiled
        while len(self._compiled) > 1 and self._num_bytes() > _MOST_CACHED_BYTES:
            self._compiled.popitem(last=False)
        return compiled

    def match(self, kind: GuideKind, text: str, end_ids: tuple[int, ...]) -> Matcher:
        """A matcher at the beginning of an output that `end_ids` end."""
        matcher = self._core.GrammarMatcher(self.compile(kind, text), None, False, -1, None)
        return Matcher(matcher, end_ids, self.vocab_size)

    def _num_bytes(self) -> int:
        return sum(compiled.memory_size_bytes() for compiled in self._compiled.values())

    def _compile(self, kind: GuideKind, text: str) -> Any:
        match kind:
            case GuideKind.JSON:
                return self._compiler.compile_builtin_json_grammar()
            case GuideKind.JSON_SCHEMA:
                # Any whitespace, default separators, closed objects, properties in order: as TensorRT-LLM asks for it.
                schema = with_patterns_for_lengths(text)
                return self._compiler.compile_json_schema(schema, True, None, None, True, None, False)
            case GuideKind.REGEX:
                return self._compiler.compile_regex(text)
            case GuideKind.EBNF:
                return self._compiler.compile_grammar_from_strings(text, "root")


class Matcher:
    """One output on its way through a grammar."""

    def __init__(self, matcher: Any, end_ids: tuple[int, ...], vocab_size: int) -> None:
        """matcher: xgrammar's, for which the token `vocab_size` ends the output; `end_ids` do so in its place."""
        self._matcher = matcher
        self._end_ids = frozenset(end_ids)
        self._end = vocab_size
        self._words: NDArray[np.int32] = np.zeros((1, vocab_size // 32 + 1), np.int32)
        self._bits: NDArray[np.uint8] = self._words.view(np.uint8)[0]

    def accept(self, token_id: int) -> bool:
        """Go on by one token; False if the grammar does not allow it, or it would end the output, and nothing changes."""
        return token_id not in self._end_ids and bool(self._matcher.accept_token(token_id, False))

    def rollback(self, num_tokens: int) -> None:
        """Take the last `num_tokens` back."""
        if num_tokens:
            self._matcher.rollback(num_tokens)

    def mask(self) -> bytes:
        """Context.allowed; empty if the output is complete and nothing can follow."""
        if not self._matcher.fill_next_token_bitmask(self._words, 0, False):
            self._words.fill(-1)
        may_end = self._take(self._end)
        for token_id in self._end_ids:
            self._take(token_id)
        if may_end and not self._bits.any():
            return b""
        if may_end:
            self._allow_end()
        return bytes(self._bits[: -(-self._end // 8)])

    def end_mask(self) -> bytes:
        """The same, of the tokens that end the output alone."""
        self._words.fill(0)
        self._allow_end()
        return bytes(self._bits[: -(-self._end // 8)])

    def _allow_end(self) -> None:
        for token_id in self._end_ids:
            self._bits[token_id // 8] |= 1 << token_id % 8

    def _take(self, token_id: int) -> bool:
        """Forbid a token; whether it was allowed."""
        bit = 1 << token_id % 8
        was_allowed = bool(self._bits[token_id // 8] & bit)
        self._bits[token_id // 8] &= ~bit & 0xFF
        return was_allowed
