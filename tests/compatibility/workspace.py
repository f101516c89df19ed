"""Workspace: where clients run, with what they want to find there, and the server that they speak to."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from adapters import write_adapters
from case import Case, Server
from catalogue import VLLM_MODEL

from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import EngineManifest
from trierarch.ensembles.compose import ComposeOptions, compose
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.server_config import Endpoints, ServerConfig
from trierarch.orchestrator.serving import serving

HERE: Final = Path(__file__).parent
_PACKAGES: Final = ("pandas<3", "tabulate", "requests", "numpy<2")
"""What the clients import and this project does not need."""
_TESTS: Final = "ci/L0_backend_trtllm"
"""Where unittest finds the tests of metrics, and their data."""
_VLLM_COMMON: Final = "ci/common"
"""What the vLLM backend's tests have in common."""
_NUM_ADAPTERS: Final = 3
_SHORT: Final = 320
_PATIENCE_SECONDS: Final = 600


class Workspace:
    """A folder, an engine, and checkouts of the clients' repositories."""

    def __init__(self, folder: Path, engine: Path, checkouts: Path) -> None:
        """Prepare a tokenizer as transformers reads it, and the clients' own dependencies, apart from the project's."""
        self._folder = folder
        self._engine = engine
        self._checkouts = checkouts
        self._packages = folder / "packages"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-warn-conflicts",
                "--target",
                str(self._packages),
                *_PACKAGES,
            ],
            check=True,
        )
        self._end_id = EngineManifest.load(engine).tokens.eos[0]
        self._tokenizer = folder / "tokenizer"
        _write_tokenizer(engine, self._tokenizer, self._end_id)
        write_adapters(engine, folder / "lora", _NUM_ADAPTERS)

    def has(self, case: Case) -> bool:
        """Whether the client is among the checkouts."""
        return (self._checkouts / case.client).is_dir()

    def commit(self, client: str) -> str:
        """The commit of a checkout, and its date."""
        command = ["git", "-C", str(self._checkouts / client), "log", "-1", "--format=%h, %cs"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    @contextmanager
    def serve(self, server: Server) -> Iterator[Endpoints]:
        """A server of that kind, for as long as the block lasts."""
        repository = self._folder / server.name.lower()
        if not repository.exists():
            options = ComposeOptions(
                decoupled=server not in (Server.UNARY, Server.CLEAN), vllm=VLLM_MODEL if server is Server.VLLM else ""
            )
            compose(self._short_engine() if server is Server.SHORT else self._engine, repository, options)
            if server in (Server.CLEAN, Server.CLEAN_DECOUPLED):
                shutil.rmtree(repository / "tensorrt_llm_bls")  # as TensorRT-LLM's own run of these tests does
        ports = Ports() if server.is_clean else Ports(http=0, grpc=0, metrics=0)
        with serving(repository, ServerConfig(ports=ports, drain_timeout=5)) as running:
            yield running.endpoints
            running.stop()

    def _short_engine(self) -> Path:
        engine = self._folder / "short-engine"
        build(BuildConfig(model="demo", output=engine, max_seq_len=_SHORT))
        return engine

    def run(self, case: Case, endpoints: Endpoints) -> tuple[int, str]:
        """Run a case's command; its exit status, and what it printed.

        Status 124 says that it was killed, for it took too long.
        """
        checkout = self._checkouts / case.client
        filled = case.command.format(
            client=checkout,
            here=HERE,
            work=self._folder,
            tokenizer=self._tokenizer,
            end=self._end_id,
            grpc=endpoints.grpc,
            http=endpoints.http.removeprefix("http://"),
            metrics=endpoints.metrics,
        )
        environment = (
            os.environ
            | dict(case.environment)
            | {
                "PYTHONPATH": os.pathsep.join(
                    str(path) for path in (self._packages, checkout / _TESTS, checkout / _VLLM_COMMON, HERE)
                ),
                "BACKEND_ROOT": str(checkout),
            }
        )
        dataset = checkout / _TESTS / "simple_data.json"
        if dataset.exists():
            shutil.copy(dataset, self._folder)
        try:
            done = subprocess.run(
                [sys.executable, *shlex.split(filled)],
                cwd=self._folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_PATIENCE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, f"killed after {_PATIENCE_SECONDS} s"
        return done.returncode, done.stdout

    def keep(self, name: str, text: str) -> None:
        """Write a file that later cases read."""
        (self._folder / name).write_text(text, encoding="utf-8")


def _write_tokenizer(engine: Path, folder: Path, end_id: int) -> None:
    from transformers import PreTrainedTokenizerFast

    file = str(engine / "tokenizer.json")
    end = PreTrainedTokenizerFast(tokenizer_file=file).convert_ids_to_tokens(end_id)
    PreTrainedTokenizerFast(tokenizer_file=file, eos_token=end, pad_token=end).save_pretrained(str(folder))
