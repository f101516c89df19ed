"""A guide process: compiles guides on one connection, and says what sequences may draw on the other.

Started by `process.py`, and killed by it where a guide takes too long. It keeps nothing that cannot be worked out again.
"""

from __future__ import annotations

import os
import pickle
import re
import resource
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from trierarch.python_backend.guides.grammar import Grammars, Matcher
from trierarch.python_backend.guides.protocol import Asks, MaskAsk, MaskReply, Vocabulary
from trierarch.python_backend.request import Guide
from trierarch.python_backend.text.tokenizer import Tokenizer

_HOLD: Final = 0.002
"""Seconds for which what is ready waits for what comes after it."""
_WHERE: Final = re.compile(r"^\[[^]]*\] \S+\.cc:\d+: ")
"""The time and the place in xgrammar's sources that begin its messages."""


def main() -> None:
    """Serve until the other side is gone. Arguments: file descriptors to compile on and to mask on, then a Vocabulary."""
    compiling, masking = (Connection(int(argument)) for argument in sys.argv[1:3])
    vocabulary: Vocabulary = pickle.loads(bytes.fromhex(sys.argv[3]))
    os.nice(vocabulary.niceness)
    grammars = Grammars(_token_bytes(vocabulary))
    resource.setrlimit(resource.RLIMIT_DATA, (vocabulary.max_bytes, vocabulary.max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asks: SimpleQueue[Asks] = SimpleQueue()
    threading.Thread(target=_read, args=(masking, asks), daemon=True).start()
    threading.Thread(target=_serve_guides, args=(compiling, grammars), daemon=True).start()
    masking.send([])  # it is up
    _serve_masks(masking, asks, grammars)


def _token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    tokenizer = Tokenizer.load(Path(vocabulary.engine))
    ids = range(vocabulary.vocab_size)
    return [b"" if token_id in tokenizer.special_ids else tokenizer.bytes.of(token_id) for token_id in ids]


def _read(masking: Connection, asks: SimpleQueue[Asks]) -> None:
    """Take in what comes, so that whoever asks never waits; end with whoever asks."""
    try:
        while True:
            asks.put(masking.recv())
    except (EOFError, OSError):
        os._exit(0)


def _serve_guides(compiling: Connection, grammars: Grammars) -> None:
    """Answer each guide with None, or with what is wrong with it."""
    try:
        while True:
            compiling.send(_objection(compiling.recv(), grammars))
    except (EOFError, OSError):
        os._exit(0)


def _objection(guide: Guide, grammars: Grammars) -> str | None:
    try:
        matcher = grammars.match(guide.kind, guide.text, ())
    except (RuntimeError, MemoryError) as error:
        return _WHERE.sub("", str(error)).strip() or type(error).__name__
    if not any(matcher.mask()):
        return "it allows no output but an empty one, or needs characters that no token has"
    return None


def _serve_masks(masking: Connection, asks: SimpleQueue[Asks], grammars: Grammars) -> None:
    matchers: dict[int, Matcher] = {}
    while True:
        replies: list[MaskReply] = []
        some = asks.get()
        started = time.monotonic()
        for sequence_id in some.forgotten:
            matchers.pop(sequence_id, None)
        for ask in some.asks:
            if replies and time.monotonic() - started > _HOLD:
                masking.send(replies)
                replies = []
            replies.append(_reply(ask, matchers, grammars))
        if replies:
            masking.send(replies)


def _reply(ask: MaskAsk, matchers: dict[int, Matcher], grammars: Grammars) -> MaskReply:
    if ask.num_accepted == 0:
        matchers[ask.sequence_id] = grammars.match(ask.guide.kind, ask.guide.text, ask.end_ids)
    matcher = matchers[ask.sequence_id]
    if not all(matcher.accept(token_id) for token_id in ask.token_ids):
        return MaskReply(ask.serial, (), is_over=False)
    masks = [matcher.mask() or (matcher.end_mask() if ask.draws_end else b"")]
    if not masks[0]:
        return MaskReply(ask.serial, (), is_over=True)
    num_drafts = 0
    for token_id in ask.draft_token_ids:
        if not matcher.accept(token_id):
            break
        num_drafts += 1
        if not (mask := matcher.mask()):
            break  # the output would be complete with it: it is drawn where it stands, and nothing behind it
        masks.append(mask)
    matcher.rollback(num_drafts)
    return MaskReply(ask.serial, tuple(masks), is_over=False)


if __name__ == "__main__":
    main()
