"""AdapterDirectories: the registry. What lies in them is registered; nothing else remembers.

A name is looked up on each request, at the cost of a few `stat`s. A file that is written beside and renamed into place
is a new version from the next request on, and one that is deleted is gone for whoever comes next. Names come from
strangers: nothing but a plain name is looked up, and only regular files within the directories are opened.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trierarch.builder.adapter import ADAPTER_SUFFIX, NAME_PATTERN, AdapterManifest
from trierarch.builder.adapter_source import PEFT_FILES, AdapterSource
from trierarch.builder.errors import AdapterError, ConfigError
from trierarch.builder.manifest import ADAPTERS_NAME, EngineManifest
from trierarch.python_backend.adapters.adapter import Adapter, without_folder
from trierarch.python_backend.errors import UnknownAdapter, UnusableAdapter

DRAFT_SUFFIX: Final = ".draft"
"""NAME.draft is what the draft model runs with where the served one runs with NAME."""

_MAX_OPEN: Final = 64
"""Versions kept open that nobody has at the moment."""
_MAX_TRIES: Final = 5
_NUM_SHOWN: Final = 5
_name: Final = re.compile(NAME_PATTERN)

_FileSignature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a version lies, and what tells it from the next one there."""

    root: Path
    path: Path
    signatures: tuple[_FileSignature, ...]

    @property
    def num_bytes(self) -> int:
        return sum(size for _, _, size, _ in self.signatures)


@dataclass(slots=True)
class _Known:
    """The latest version that was seen under a name."""

    place: _Place
    manifest: AdapterManifest
    adapter: weakref.ref[Adapter]


class AdapterDirectories:
    """Finds adapters by name. Any thread may call it."""

    def __init__(self, directories: tuple[Path, ...], engine: Path, manifest: EngineManifest) -> None:
        """Look into the engine's own folder of adapters first, then into `directories`, in order.

        Raises:
            ConfigError: one of `directories` is not there.
        """
        for directory in directories:
            if not directory.is_dir():
                raise ConfigError(f"adapter directory {str(directory)!r} is no directory; create it, or name another")
        self._engine = engine
        self._manifest = manifest
        self._directories = (engine / ADAPTERS_NAME, *directories)
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # one version is opened at a time: some are large
        self._known: dict[str, _Known] = {}
        self._open: OrderedDict[str, Adapter] = OrderedDict()  # name -> adapter, the longest not asked for first

    def find(self, name: str) -> Adapter:
        """The version that `name` means now; it stays readable whatever happens to its files.

        Raises:
            UnknownAdapter: there is none.
            UnusableAdapter: it is no regular file within the directory, is damaged, or does not fit the engine.
        """
        try:
            place = self._place(name)
            return self._find_open(name, place) or self._open_version(name)
        except AdapterError as error:
            raise UnusableAdapter("adapter", name, str(error)) from error

    def look(self, name: str) -> tuple[AdapterManifest, int]:
        """What `name` means now, and how many bytes its files have.

        Raises:
            UnknownAdapter, UnusableAdapter: see `find`.
        """
        try:
            place = self._place(name)
        except AdapterError as error:
            raise UnusableAdapter("adapter", name, str(error)) from error
        with self._lock:
            known = self._known.get(name)
        if known is not None and known.place == place:
            return known.manifest, place.num_bytes
        return self.find(name).manifest, place.num_bytes

    def names(self) -> tuple[str, ...]:
        """All registered names, sorted; whether an adapter can be used is known once it is looked at."""
        found = {name for root in self._roots() for name in _names_in(root)}
        drafts = {name for name in found if name.endswith(DRAFT_SUFFIX) and name.removesuffix(DRAFT_SUFFIX) in found}
        with self._lock:
            for gone in self._known.keys() - found:
                del self._known[gone]
                self._open.pop(gone, None)
        return tuple(sorted(found - drafts))

    def _roots(self) -> Iterator[Path]:
        """The directories as they are now: one that is a link may be made to lead elsewhere."""
        return (Path(os.path.realpath(directory)) for directory in self._directories)

    def _place(self, name: str) -> _Place:
        if _name.fullmatch(name) is None:
            raise UnknownAdapter(
                "adapter",
                name,
                "is no name: one has 1 to 128 letters, digits, dots, dashes and underscores, a letter or digit first",
            )
        for root in self._roots():
            packed = root / f"{name}{ADAPTER_SUFFIX}"
            place = _place(root, packed, (packed,)) or _place(
                root, root / name, tuple(root / name / file for file in PEFT_FILES)
            )
            if place is not None:
                return place
        known = self.names()
        shown = ", ".join(known[:_NUM_SHOWN]) + (", ..." if len(known) > _NUM_SHOWN else "")
        raise UnknownAdapter(
            "adapter",
            name,
            f"is not registered; {f'name one of {shown}' if known else 'none is'}, leave it out to use the base model, or "
            f"put {name[:40]}{ADAPTER_SUFFIX} into an adapter directory",
        )

    def _find_open(self, name: str, place: _Place) -> Adapter | None:
        with self._lock:
            known = self._known.get(name)
            adapter = known.adapter() if known is not None and known.place == place else None
            if adapter is not None:
                self._keep_open(adapter)
            return adapter

    def _open_version(self, name: str) -> Adapter:
        with self._opening:
            for _ in range(_MAX_TRIES):
                place = self._place(name)
                if (adapter := self._find_open(name, place)) is not None:
                    return adapter
                try:
                    source = AdapterSource.open(place.path, self._engine, self._manifest)
                except AdapterError as error:
                    if self._place(name) != place:
                        continue  # It was replaced meanwhile.
                    raise AdapterError(without_folder(error, str(place.root))) from error
                adapter = Adapter(name, source, place.num_bytes, str(place.root))
                if self._place(name) == place:
                    with self._lock:
                        self._known[name] = _Known(place, adapter.manifest, weakref.ref(adapter))
                        self._keep_open(adapter)
                    return adapter
        raise AdapterError("it is replaced again and again; send the request later")

    def _keep_open(self, adapter: Adapter) -> None:
        self._open[adapter.name] = adapter
        self._open.move_to_end(adapter.name)
        while len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)


def _place(root: Path, path: Path, files: tuple[Path, ...]) -> _Place | None:
    """Where `files` of a version lie; None unless all are there."""
    signatures = [_signature(root, file) for file in files]
    there = tuple(signature for signature in signatures if signature is not None)
    return _Place(root, path, there) if len(there) == len(files) else None


def _signature(root: Path, file: Path) -> _FileSignature | None:
    """What tells a file's version; None where there is no file."""
    name = file.relative_to(root)
    try:
        real = file.resolve(strict=True)
        if not real.is_relative_to(root):
            raise AdapterError(f"{name} leads out of its adapter directory; put the file itself there")
        found = real.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise AdapterError(f"{name} cannot be read ({reason}); repair it") from error
    if not stat.S_ISREG(found.st_mode):
        raise AdapterError(f"{name} is no regular file; put the file itself there")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _names_in(root: Path) -> set[str]:
    names = set[str]()
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name.endswith(ADAPTER_SUFFIX):
                    names.add(entry.name.removesuffix(ADAPTER_SUFFIX))
                elif Path(entry.path, PEFT_FILES[0]).exists():
                    names.add(entry.name)
    except OSError:  # An engine need not bring any, and a directory may be gone: what was in it is not registered then.
        return set()
    return {name for name in names if _name.fullmatch(name)}
