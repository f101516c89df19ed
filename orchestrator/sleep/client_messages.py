"""ClientMessages: a stream's messages from its client, which may be read again from the first one until that is needless."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

from trierarch.orchestrator.sleep.kept_bytes import MAX_REQUEST_BYTES, KeptBytes

MAX_AHEAD: Final = 16
"""Messages that are read before the server has taken those before them."""


class ClientMessages:
    """Pumped from the client on one side, read by one reader after another on the other."""

    def __init__(self, kept: KeptBytes) -> None:
        """Nothing has come."""
        self._kept = kept
        self._messages: list[bytes] = []
        self._num_dropped = self._num_read = 0
        """Of all that ever came: those no longer kept, and those that the present reader has taken."""
        self._num_bytes = 0
        self._num_readers = 0
        self._is_over = self._is_answered = False
        self._changed = asyncio.Condition()

    @property
    def can_be_read_again(self) -> bool:
        """Whether all that came is still kept."""
        return self._num_dropped == 0

    async def pump(self, source: AsyncIterable[bytes]) -> None:
        """Take what comes until it ends, never far ahead of the reader.

        Raises:
            TooManyBytes: no more can be kept.
        """
        async for message in source:
            async with self._changed:
                await self._changed.wait_for(lambda: self._num_come - self._num_read < MAX_AHEAD)
                self._kept.take(len(message))
                self._messages.append(message)
                self._num_bytes += len(message)
                self._drop_if_needless()
                self._changed.notify_all()
        async with self._changed:
            self._is_over = True
            self._changed.notify_all()

    async def begin(self) -> None:
        """Wait for the first message, or the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._num_come or self._is_over)

    async def read(self) -> AsyncIterator[bytes]:
        """From the first message on. Whoever read before gets no more."""
        assert self.can_be_read_again
        self._num_readers += 1
        reader, self._num_read = self._num_readers, 0
        while True:
            async with self._changed:
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._has_news_for(reader))
                if reader != self._num_readers or self._num_come == self._num_read:
                    return
                message = self._messages[self._num_read - self._num_dropped]
                self._num_read += 1
                self._drop_if_needless()
            yield message

    def answered(self) -> None:
        """The server has answered: nothing is sent again, so nothing need be kept."""
        self._is_answered = True
        self._drop_if_needless()

    def close(self) -> None:
        """Keep nothing. Idempotent."""
        self._drop(len(self._messages))

    @property
    def _num_come(self) -> int:
        return self._num_dropped + len(self._messages)

    def _has_news_for(self, reader: int) -> bool:
        return reader != self._num_readers or self._num_come > self._num_read or self._is_over

    def _drop_if_needless(self) -> None:
        """Those that were read, unless they may have to be read again."""
        if self._is_answered or self._num_bytes > MAX_REQUEST_BYTES:
            self._drop(self._num_read - self._num_dropped)

    def _drop(self, count: int) -> None:
        num_bytes = sum(map(len, self._messages[:count]))
        del self._messages[:count]
        self._num_dropped += count
        self._num_bytes -= num_bytes
        self._kept.give_back(num_bytes)
