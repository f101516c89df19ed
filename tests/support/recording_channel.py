"""RecordingChannel: a Channel that remembers, for tests of what is sent to clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trierarch.python_backend.triton.responses import NamedArray


class RecordingChannel:
    """Implements Channel. Whoever asks hears that the client has gone."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], bool]] = []
        self.errors: list[BaseException] = []

    def send(self, arrays: Sequence[NamedArray], is_final: bool) -> None:
        self.sent.append((dict(arrays), is_final))

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)

    def is_cancelled(self) -> bool:
        return True
