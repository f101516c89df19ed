"""A server over an engine or a repository, for as long as a `with` block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.orchestrator.completed_repository import complete_repository
from trierarch.orchestrator.kv_tiers import AS_THE_REPOSITORY_SAYS, KvTiers
from trierarch.orchestrator.repository import repository_of
from trierarch.orchestrator.run_directory import RunDirectory
from trierarch.orchestrator.server_config import ModelControl, ServerConfig
from trierarch.orchestrator.triton_install import find_triton
from trierarch.orchestrator.triton_server import TritonServer


@contextmanager
def serving(
    path: Path,
    config: ServerConfig,
    on_wait: Callable[[float], None] = lambda seconds: None,
    adapters: Sequence[Path] = (),
    tiers: KvTiers = AS_THE_REPOSITORY_SAYS,
) -> Iterator[TritonServer]:
    """Serve `path`, ready when the block is entered and gone when it is left; `on_wait` hears the seconds until ready.

    Raises:
        TrierarchError: as `prepared`, or a port is occupied, or `path` cannot be served.
    """
    with prepared(path, config, adapters, tiers=tiers) as server:
        server.start(on_wait)
        yield server


@contextmanager
def prepared(
    path: Path,
    config: ServerConfig,
    adapters: Sequence[Path] = (),
    keep_prefixes: bool = False,
    tiers: KvTiers = AS_THE_REPOSITORY_SAYS,
) -> Iterator[TritonServer]:
    """A server of `path` that has all it needs to start, as often as it is wanted; gone when the block is left.

    adapters: directories of adapters beside those that a repository names.
    keep_prefixes: whether the next start finds the prefixes that the last one had computed.
    tiers: what lies behind the KV cache; on disk, in directories named for `path` and the model within the one named.

    Raises:
        TrierarchError: there is no server to run, or `path` is nothing to serve. If the block ends by a ResourceError, the
            run directory is left for its log to be read, until the next server starts.
    """
    for directory in adapters:
        if not directory.is_dir():
            raise ConfigError(f"--adapters is {str(directory)!r}: no directory is there; create it, or name another")
    install = find_triton()
    run = RunDirectory(install)
    keep_log = False
    try:
        repository = repository_of(path, run)
        # A model that is to come later would not come into a copy.
        is_fixed = config.model_control is ModelControl.NONE or repository == run.repository
        prefixes = run.prefixes if keep_prefixes else None
        own_tiers = tiers.of(path.resolve().name)
        if is_fixed and complete_repository(repository, run.completed, adapters, run.uploads, prefixes, own_tiers):
            repository, config = run.completed, replace(config, auto_complete=False)
        elif adapters:
            raise ConfigError(
                f"--adapters is {str(adapters[0])!r}: this repository is served as it stands; compose it with --adapters"
            )
        elif tiers != AS_THE_REPOSITORY_SAYS:
            raise ConfigError(
                "--kv-host-bytes, of a repository that is served as it stands: compose it with --kv-host-bytes"
            )
        with TritonServer(install.binary, repository, run, config) as server:
            yield server
    except ResourceError:
        keep_log = run.log.exists()
        raise
    finally:
        if keep_log:
            run.release()
        else:
            run.remove()
