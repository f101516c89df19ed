"""AdapterUploads: adapters that clients send with a request, kept as files, so that no task is ever forgotten.

They lie in a directory of their own, the last of the executor's adapter directories: what the operator registered is
found first, and is never a client's to change. A task's file stays until the operator deletes it, or until the directory
goes, where it is a temporary one.
"""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from trierarch.builder.adapter import ADAPTER_SUFFIX
from trierarch.builder.errors import AdapterError, ConfigError, ResourceError
from trierarch.builder.manifest import EngineManifest
from trierarch.builder.packed_adapter import read_manifest, write_packed
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, UnknownAdapter, UnusableAdapter
from trierarch.python_backend.triton.adapter_inputs import AdapterInput, LoraTensors
from trierarch.python_backend.triton.lora_tensors import WEIGHTS, read_lora

logger = logging.getLogger(__name__)

PREFIX: Final = "trierarch-adapters-"
_task_file: Final = re.compile(rf"[1-9][0-9]*{re.escape(ADAPTER_SUFFIX)}")


class AdapterUploads:
    """Takes adapters for one engine. One thread at a time calls `take`."""

    def __init__(
        self,
        operators: AdapterDirectories,
        manifest: EngineManifest,
        directory: Path | None = None,
        *,
        max_adapters: int,
        is_allowed: bool = True,
    ) -> None:
        """`operators`: the engine's own and what the operator named. `directory` None makes a temporary one.

        Raises:
            ConfigError: `directory` cannot be made.
        """
        self._operators = operators
        self._manifest = manifest
        self._max_adapters = max_adapters
        self._is_allowed = is_allowed
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            directory = Path(self._temporary.name)
        self.directory = _made(directory)

    def take(self, adapter: AdapterInput) -> AdapterInput:
        """Register what came with a request, if anything did, and let go of it.

        The same again changes nothing, another replaces it.

        Raises:
            InvalidRequest: the tensors are no adapter of this engine; uploads are switched off; there is no place left; or
                the task is the operator's, and something else.
            ExecutorFailed: the disk is full or cannot be written.
        """
        if adapter.upload is not None:
            self._register(adapter, adapter.upload)
        return replace(adapter, upload=None)

    def close(self) -> None:
        """Remove a temporary directory. Idempotent."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _register(self, adapter: AdapterInput, upload: LoraTensors) -> None:
        shape = upload.weights.shape
        if not self._is_allowed:
            raise InvalidRequest(
                WEIGHTS, shape, "this server takes no adapters from clients; send the id of a registered task alone"
            )
        tensors = read_lora(upload, self._manifest, source=f"{adapter.tensor} {adapter.name}")
        known = self._operators_digest(adapter)
        if known is not None:
            if known != tensors.manifest.digest:
                raise InvalidRequest(
                    WEIGHTS,
                    shape,
                    f"adapter {adapter.name} is the operator's, and another one; send its id alone, or another id",
                )
            return
        path = self.directory / f"{adapter.name}{ADAPTER_SUFFIX}"
        if _digest(path) == tensors.manifest.digest:
            return
        if not path.exists() and self._num_adapters() >= self._max_adapters:
            raise InvalidRequest(
                WEIGHTS,
                shape,
                f"clients have sent {self._max_adapters} adapters, which is all there is room for; send the id of one of "
                "them, or ask for a larger max_uploaded_adapters",
            )
        try:
            write_packed(tensors, path)
        except ResourceError as error:
            logger.error(
                "adapter %s of a client cannot be kept: %s", adapter.name, error
            )  # where, is no client's affair
            raise ExecutorFailed("the server cannot keep lora_weights; its log says why") from error

    def _operators_digest(self, adapter: AdapterInput) -> str | None:
        """Of the operator's adapter of that name; None if there is none."""
        try:
            return self._operators.find(adapter.name).digest
        except UnknownAdapter:
            return None
        except UnusableAdapter as error:
            raise error.renamed(adapter.tensor) from error

    def _num_adapters(self) -> int:
        return sum(_task_file.fullmatch(path.name) is not None for path in self.directory.iterdir())


def _digest(path: Path) -> str | None:
    """Of what a task's file holds; None if there is none that can be read."""
    try:
        return read_manifest(path).digest
    except AdapterError:
        return None


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"parameter adapter_upload_directory is {str(directory)!r}, which cannot be made ({error.strerror}); name another"
        ) from error
    return directory
