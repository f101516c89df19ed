"""BlockFiles: cached blocks on disk, a file each.

    magic, digest of what the content is (32 bytes), chain key (16 bytes)
    digest of all the file's other bytes (32 bytes)
    content, as the copier gave it

What a content is depends on the engine and on how its runner lays blocks out; both are in the first digest, whose beginning is
in the file's name too. What adapter and which tenant's salt a block belongs to is in its key (kv/prefix_cache.py). A file holds
what clients said, in another form: nobody but its owner may read it. It is written under another name and then renamed; one
that is no good, for whatever reason, is deleted, and its block is computed again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.python_backend.kv.prefix_cache import KEY_BYTES

logger = logging.getLogger(__name__)

MAGIC: Final = b"trierarch block 1\n"
SUFFIX: Final = ".kv"
_DIGEST_BYTES: Final = 32
_HEADER_BYTES: Final = len(MAGIC) + _DIGEST_BYTES + KEY_BYTES
_NAME_BYTES: Final = 8
"""Of the digest of what the content is, in a file's name."""
LOCK: Final = "lock"
"""File whose lock says whose the directory is."""
_LOCK_SECONDS: Final = 10.0
"""For a server that was killed a moment ago to be gone."""


class UnusableBlock(Exception):
    """A file is no good here; why, in words."""


class BlockFiles:
    """One engine's files in a directory that no other process uses meanwhile; files of other engines are left alone."""

    def __init__(self, directory: Path, content: str, block_bytes: int, lock: str = LOCK) -> None:
        """Take the directory, which is made if need be, and sweep up what a crash left.

        content: says all that must be alike for a file to be of use. lock: of several that share a directory and say that
        their contents are not alike, each has another.

        Raises:
            ConfigError: it cannot be written to, or another process has it.
        """
        self._directory = directory
        self._content = blake2b(content.encode(), digest_size=_DIGEST_BYTES).digest()
        self._block_bytes = block_bytes
        self._is_failing = False
        self._lock: int | None = _locked(directory, lock)
        for path in directory.glob(f"{self._prefix}-*.part"):
            path.unlink(missing_ok=True)
        self.kept = self._keys()
        """Keys of what is there already, the longest unused first."""

    def keep(self, keys: Sequence[bytes]) -> None:
        """Delete all that was there already, but for these."""
        for key in set(self.kept).difference(keys):
            self.delete(key)
        self.kept = list(keys)

    def write(self, key: bytes, pieces: Sequence[memoryview]) -> bool:
        """Keep a block's content; whether that was done. The first failure of a row is logged."""
        path = self._path(key)
        staging = path.with_suffix(".part")
        header = MAGIC + self._content + key
        try:
            with open(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(header + _digest(header, pieces))
                file.writelines(pieces)
            staging.replace(path)
        except OSError as error:
            if not self._is_failing:
                logger.warning("cached blocks are not kept in %s: %s", self._directory, error)
            self._is_failing = True
            with suppress(OSError):
                staging.unlink()
            return False
        self._is_failing = False
        return True

    def read(self, key: bytes) -> bytearray:
        """A block's content.

        Raises:
            UnusableBlock: there is none, or none that can be trusted; there is no file then.
        """
        path = self._path(key)
        try:
            content = self._checked(key, path)
            os.utime(path)  # the next process keeps the latest used
        except (OSError, UnusableBlock) as error:
            self.delete(key)
            raise UnusableBlock(f"{path}: {error}") from error
        return content

    def delete(self, key: bytes) -> None:
        """Let a block go; nothing happens if there is none."""
        with suppress(OSError):
            self._path(key).unlink()

    def close(self) -> None:
        """Give the directory back. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _prefix(self) -> str:
        return self._content[:_NAME_BYTES].hex()

    def _path(self, key: bytes) -> Path:
        return self._directory / f"{self._prefix}-{key.hex()}{SUFFIX}"

    def _keys(self) -> list[bytes]:
        found: list[tuple[int, bytes]] = []
        for path in self._directory.glob(f"{self._prefix}-*{SUFFIX}"):
            with suppress(OSError, ValueError):
                status, key = path.stat(), bytes.fromhex(path.stem.partition("-")[2])
                if status.st_size == file_bytes(self._block_bytes) and len(key) == KEY_BYTES:
                    found.append((status.st_mtime_ns, key))
        return [key for _, key in sorted(found)]

    def _checked(self, key: bytes, path: Path) -> bytearray:
        expected = MAGIC + self._content + key
        with path.open("rb") as file:
            header, digest = file.read(_HEADER_BYTES), file.read(_DIGEST_BYTES)
            if header != expected:
                raise UnusableBlock("it is of another engine or another block")
            content = bytearray(self._block_bytes)
            if file.readinto(content) != self._block_bytes or file.read(1):
                raise UnusableBlock("it was cut short, or goes on behind its end")
        if _digest(header, [memoryview(content)]) != digest:
            raise UnusableBlock("its content was changed")
        return content


def _digest(header: bytes, pieces: Sequence[memoryview]) -> bytes:
    digest = blake2b(header, digest_size=_DIGEST_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def file_bytes(block_bytes: int) -> int:
    """Of a file that holds a block's content."""
    return _HEADER_BYTES + _DIGEST_BYTES + block_bytes


def check_room(directory: Path, max_bytes: int, kept_bytes: int) -> None:
    """Raise ResourceError unless the disk has room for so many bytes of files, those that are there already among them."""
    free = shutil.disk_usage(directory).free + kept_bytes
    if max_bytes > free:
        raise ResourceError(
            f"kv_cache_disk_bytes is {max_bytes}, and the disk of {directory} has {free} left: free some, or ask for less "
            "(--kv-disk-bytes)"
        )


def _locked(directory: Path, lock: str) -> int:
    """Descriptor of the file whose lock says that the directory is ours."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(directory / lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"kv_cache_disk_directory is {str(directory)!r}, where nothing can be written ({error}); let this user write "
            "there, or name another directory"
        ) from error
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                os.close(file)
                raise ConfigError(
                    f"kv_cache_disk_directory is {str(directory)!r}, which another process keeps blocks in; give each model "
                    "and each instance of one a directory of its own"
                ) from None
            time.sleep(0.1)
        else:
            return file
