"""RunDirectory: what one running server owns beside its model repository: backends, a library path, a log, shared memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from trierarch.orchestrator.triton_install import TritonInstall

PREFIX: Final = "trierarch-"
PYTHON: Final = "python"
BACKEND: Final = "trierarch"
SHIM: Final = "from trierarch.python_backend.model import TritonPythonModel as TritonPythonModel\n"
SHARED_MEMORY: Final = Path("/dev/shm")


class RunDirectory:
    """A small folder under the system's temporary folder, made afresh for each server.

    backends/python/      the installed Python backend, with the stub of this Python version
    backends/trierarch/   our Python-based backend: one import line
    backends/.../         links to the installed server's other backends
    lib/                  libpython alone, so that no other library of its folder shadows the server's
    repository/           where an engine is composed, when an engine and not a repository is served
    completed/            the repository that is served, its configurations completed
    uploads/              adapters that clients sent, where the repository names no place for them
    prefixes/             cached prefixes of a server that sleeps
    server.log            what the server and its stubs say
    lock                  held while we live: a directory whose lock is free was left by a process that was killed

    The shared memory of the server's stubs is named after it and goes with it.
    """

    def __init__(self, install: TritonInstall) -> None:
        """Lay the folder out for `install`, and remove those that killed processes left."""
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._install = install
        self._lock = _try_lock(self.path)
        self._lay_out_backends()
        self._libraries.mkdir()
        if install.libpython is not None:
            (self._libraries / install.libpython.name).symlink_to(install.libpython)

    def _lay_out_backends(self) -> None:
        self.backends.mkdir()
        for name, source in self._install.backends.items():
            if name not in (PYTHON, BACKEND):
                (self.backends / name).symlink_to(source)
        # Triton refuses a Python-based backend whose library is a link out of the backend directory.
        python = self.backends / PYTHON
        shutil.copytree(self._install.backends[PYTHON], python, ignore=shutil.ignore_patterns("__pycache__"))
        if self._install.stub is not None:
            shutil.copy(self._install.stub, python)
        shim = self.backends / BACKEND / "model.py"
        shim.parent.mkdir()
        shim.write_text(SHIM, encoding="utf-8")

    @property
    def backends(self) -> Path:
        """Triton's backend directory."""
        return self.path / "backends"

    @property
    def repository(self) -> Path:
        """Place for a composed repository; made by whoever composes."""
        return self.path / "repository"

    @property
    def completed(self) -> Path:
        """Place for the served repository with its configurations completed."""
        return self.path / "completed"

    @property
    def uploads(self) -> Path:
        """Place for clients' adapters: they outlive a server that crashes, and not us."""
        return self.path / "uploads"

    @property
    def prefixes(self) -> Path:
        """Place for cached prefixes: they outlive a server that sleeps, and not us."""
        return self.path / "prefixes"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.path / "server.log"

    @property
    def shared_memory_prefix(self) -> str:
        """Prefix of the names of the stubs' shared memory."""
        return f"{self.path.name}."

    @property
    def _libraries(self) -> Path:
        return self.path / "lib"

    def environment(self) -> dict[str, str]:
        """Environment of the server. Its stub runs the first `python3` on PATH, and ignores PYTHONPATH."""
        environment = dict(os.environ)
        libraries = [str(self._libraries), *map(str, self._install.libraries), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', os.defpath)}"
        return environment

    def sweep_shared_memory(self) -> None:
        """Remove what killed stubs left; call it when no server runs here."""
        _sweep_shared_memory(self.path)

    def remove(self) -> None:
        """Delete it all. Idempotent."""
        self.sweep_shared_memory()
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Leave it on disk, for its log to be read, until the next server starts. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep() -> None:
    """Remove the run directories, and the shared memory, of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(OSError):  # another user's, or swept by another at this moment
            lock = _try_lock(path.parent)
            if lock is not None:
                _sweep_shared_memory(path.parent)
                shutil.rmtree(path.parent, ignore_errors=True)
                os.close(lock)


def _try_lock(folder: Path) -> int | None:
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep_shared_memory(folder: Path) -> None:
    for region in SHARED_MEMORY.glob(f"{folder.name}.*"):
        region.unlink(missing_ok=True)
