"""AdapterShelf: adapters that clients may have loaded and unloaded, by name, from a store that is the operator's.

What lies in a directory of adapters is served (see the backend's AdapterDirectories). So loading one is copying it there
from the store, whole or not at all, and unloading it is taking it away. No path ever comes from a client.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
from pathlib import Path
from typing import Any

from trierarch.builder.errors import AdapterError, ConfigError
from trierarch.orchestrator.gateway.errors import ApiError, invalid
from trierarch.orchestrator.gateway.fields import Fields


class AdapterShelf:
    """A store, and the directory that is served. Any thread may call it."""

    def __init__(self, store: Path | None, directory: Path | None) -> None:
        self._store, self._directory = store, directory
        self._lock = threading.Lock()

    @classmethod
    def open(cls, store: Path | None, directory: Path | None) -> AdapterShelf:
        """Raise ConfigError where one of them is no directory. Without them nobody may load anything."""
        for option, place in (("--adapter-store", store), ("--adapter-directory", directory)):
            if place is not None and not place.is_dir():
                raise ConfigError(f"{option} is {str(place)!r}: no directory is there; create it, or name another")
        return cls(store, directory)

    def load(self, body: dict[str, Any]) -> str:
        """Serve the adapter that `lora_name` names; its name. One that is served already is brought up to date.

        Raises:
            ApiError: it is not in the store, cannot be copied, or clients may load none.
        """
        store, directory = self._places()
        name = self._read(body)
        try:
            source = _adapters(store).get(name)
        except AdapterError as error:
            raise ApiError(422, str(error), param="lora_name") from None
        if source is None:
            raise ApiError(404, f"lora_name is {name!r}: the store has none of that name", param="lora_name")
        staging = directory / f".{secrets.token_hex(8)}.part"
        target = directory / source.name
        with self._lock:
            try:
                _copy(source, staging)
                self._remove(directory, name)
                os.replace(staging, target)
            except OSError as error:
                raise ApiError(
                    422, f"adapter {name!r} cannot be copied ({error.strerror})", param="lora_name"
                ) from None
            finally:
                _delete(staging)
        return name

    def unload(self, body: dict[str, Any]) -> str:
        """Serve the adapter that `lora_name` names no more; its name. Requests that run with it go on.

        Raises:
            ApiError: it is none that was loaded here, or clients may load none.
        """
        store, directory = self._places()
        name = self._read(body)
        with self._lock:
            # The store can bring back what is taken away; what else lies there is the operator's own.
            is_ours = name in _adapters(store) and name in _adapters(directory)
            if not is_ours:
                raise ApiError(404, f"lora_name is {name!r}: none of that name was loaded", param="lora_name")
            self._remove(directory, name)
        return name

    def _places(self) -> tuple[Path, Path]:
        if self._store is None or self._directory is None:
            raise ApiError(
                404, "adapters are not loaded through this server; its operator places them", code="disabled"
            )
        return self._store, self._directory

    def _read(self, body: dict[str, Any]) -> str:
        from trierarch.builder.adapter import NAME_PATTERN

        fields = Fields(body)
        fields.refuse_others({"lora_name"}, {"lora_path": "adapters are loaded by name alone; leave it out"})
        name = fields.text("lora_name")
        if name is None or re.fullmatch(NAME_PATTERN, name) is None:
            raise invalid("lora_name", name, "must be the name of an adapter in the server's store")
        return name

    def _remove(self, directory: Path, name: str) -> None:
        """Take it away by one rename, so that nobody reads half of it."""
        while (place := _adapters(directory).get(name)) is not None:  # packed, and as PEFT saved it
            leaving = directory / f".{secrets.token_hex(8)}.part"
            os.replace(place, leaving)
            _delete(leaving)


def _adapters(directory: Path) -> dict[str, Path]:
    """Name -> where it lies. What reads adapters is imported here: a gateway that loads none is to be small."""
    from trierarch.builder.adapter_directory import adapters_in

    return dict(adapters_in(directory))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _delete(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
