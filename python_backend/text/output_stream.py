"""OutputStream: the text of one sequence, from the executor's deltas."""

from __future__ import annotations

import logging
from dataclasses import replace

from trierarch.python_backend.errors import ExecutorFailed
from trierarch.python_backend.request import FinishReason, TokenDelta
from trierarch.python_backend.text.detokenizer import Detokenizer
from trierarch.python_backend.text.stop_strings import StopStrings
from trierarch.python_backend.text.text_request import TextDelta

logger = logging.getLogger(__name__)


class OutputStream:
    """Detokenizes and looks for stop strings; knows neither threads nor the executor.

    Once a stop string is complete nothing more is shown, but the last delta waits for the executor's: it has the usage.
    """

    def __init__(
        self, detokenizer: Detokenizer, stop_strings: StopStrings, min_tokens: int = 0, include_stop: bool = False
    ) -> None:
        """Stop strings that begin within the first `min_tokens` tokens end nothing."""
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._num_tokens = 0
        self._matched: str | None = None
        self._failure: ExecutorFailed | None = None

    @property
    def is_over(self) -> bool:
        """Whether further tokens would not be shown."""
        return self._matched is not None or self._failure is not None

    def push(self, delta: TokenDelta) -> TextDelta | None:
        """What to send for a delta of the executor; None if there is nothing to say until the last one."""
        is_last = delta.finish_reason is not None
        if self.is_over and not is_last:
            return None
        text, num_shown = self._read(delta.token_ids, is_last)
        shown = TextDelta(
            request_id=delta.request_id,
            index=delta.index,
            text=text,
            token_ids=delta.token_ids[:num_shown],
            logprobs=delta.logprobs[:num_shown] if delta.logprobs is not None else None,
            prompt_logprobs=delta.prompt_logprobs,
            context_logits=delta.context_logits,
            embedding=delta.embedding,
            generation_logits=delta.generation_logits[:num_shown] if delta.generation_logits is not None else None,
        )
        return self._ended(shown, delta) if is_last else shown

    def _read(self, token_ids: tuple[int, ...], is_last: bool) -> tuple[str, int]:
        """The text that is safe to show, and how many of the tokens are part of the output."""
        text, num_shown = "", 0
        try:
            while num_shown < len(token_ids) and not self.is_over:
                piece = self._detokenizer.push(token_ids[num_shown : num_shown + 1])
                num_shown += 1
                self._num_tokens += 1
                text += self._match(piece)
            if is_last and not self.is_over:
                text += self._match(self._detokenizer.flush())
            if is_last and not self.is_over:
                text += self._stop_strings.flush()
        except Exception:
            logger.exception("an output could not be turned into text")
            self._failure = ExecutorFailed("the output could not be turned into text; see the server's log")
        return text, num_shown

    def _match(self, piece: str) -> str:
        if self._num_tokens <= self._min_tokens:
            return piece
        safe, self._matched = self._stop_strings.push(piece)
        return safe + self._matched if self._matched is not None and self._include_stop else safe

    def _ended(self, shown: TextDelta, delta: TokenDelta) -> TextDelta:
        # Tokens drawn before the executor heard that the text is over are not the client's.
        usage = replace(delta.usage, num_output_tokens=self._num_tokens) if delta.usage is not None else None
        if self._failure is not None:
            return replace(shown, finish_reason=FinishReason.ERROR, error=self._failure, usage=usage)
        if self._matched is not None:
            return replace(shown, finish_reason=FinishReason.STOP, stop_reason=self._matched, usage=usage)
        return replace(shown, finish_reason=delta.finish_reason, error=delta.error, usage=delta.usage)
