"""A server over an engine or a repository, for as long as a `with` block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.completed_repository import complete_repository
from trierarch.orchestrator.repository import repository_of
from trierarch.orchestrator.run_directory import RunDirectory
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.triton_install import find_triton
from trierarch.orchestrator.triton_server import TritonServer


@contextmanager
def serving(
    path: Path, config: ServerConfig, on_wait: Callable[[float], None] = lambda seconds: None
) -> Iterator[TritonServer]:
    """Serve `path`, ready when the block is entered and gone when it is left; `on_wait` hears the seconds until ready.

    Raises:
        TrierarchError: there is no server to run, a port is occupied, or `path` cannot be served. The run directory
            is then left for its log to be read, until the next server starts.
    """
    install = find_triton()
    run = RunDirectory(install)
    keep_log = False
    try:
        repository = repository_of(path, run)
        if complete_repository(repository, run.completed):
            repository, config = run.completed, replace(config, auto_complete=False)
        with TritonServer(install.binary, repository, run, config) as server:
            server.start(on_wait)
            yield server
    except ResourceError:
        keep_log = run.log.exists()
        raise
    finally:
        if keep_log:
            run.release()
        else:
            run.remove()
