"""UploadLine: requests that bring an adapter along, started in order on a thread of their own.

To translate and write an adapter takes long enough to delay everybody else's requests. What names an adapter while such a
request is waiting stands in the line behind it: it may mean what that one brings.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from trierarch.python_backend.errors import Overloaded
from trierarch.python_backend.triton.adapter_inputs import BY_NAME, BY_TASK
from trierarch.python_backend.triton.incoming import Incoming
from trierarch.python_backend.triton.inputs import Inputs

MAX_UPLOADS: Final = 16
"""Waiting at once; their weights are in memory."""


class UploadLine:
    """One thread puts requests in; another starts them."""

    def __init__(self, start: Callable[[Incoming], None]) -> None:
        """`start` answers each request, whatever happens, and raises nothing."""
        self._start = start
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trierarch-uploads")
        self._lock = threading.Lock()
        self._num_waiting = self._num_uploads = 0

    def takes(self, incoming: Incoming) -> bool:
        """Whether the request belongs here."""
        inputs = Inputs(incoming.arrays)
        return _is_upload(inputs) or (self._num_waiting > 0 and (BY_TASK in inputs or BY_NAME in inputs))

    def put(self, incoming: Incoming) -> None:
        """Start the request once those before it have started."""
        is_upload = _is_upload(Inputs(incoming.arrays))
        with self._lock:
            is_refused = is_upload and self._num_uploads == MAX_UPLOADS
            if not is_refused:
                self._num_waiting += 1
                self._num_uploads += is_upload
        if is_refused:
            incoming.channel.fail(Overloaded(f"{MAX_UPLOADS} adapters are waiting to be taken; retry later"))
        else:
            self._thread.submit(self._run, incoming, is_upload)

    def close(self) -> None:
        """Start what waits, then no more."""
        self._thread.shutdown()

    def _run(self, incoming: Incoming, is_upload: bool) -> None:
        try:
            self._start(incoming)
        finally:
            with self._lock:
                self._num_waiting -= 1
                self._num_uploads -= is_upload


def _is_upload(inputs: Inputs) -> bool:
    return "lora_weights" in inputs
