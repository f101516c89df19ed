from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_engine
from trierarch.ensembles.triton_messages import model_config_pb2
from trierarch.orchestrator import serving
from trierarch.orchestrator.kv_tiers import KvTiers
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.triton_install import TritonInstall
from trierarch.orchestrator.triton_server import TritonServer


def test_engines_that_share_a_disk_have_directories_of_their_own_there(
    install: TritonInstall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory has one owner, and several engines may be awake at once."""
    monkeypatch.setattr(serving, "find_triton", lambda: install)
    tiers = KvTiers.parse("1MiB", tmp_path / "kept", "1MiB")
    with ExitStack() as stack:
        places = []
        for name in ("a", "b"):
            manifest = tiny_manifest(tiny_architecture())
            (tmp_path / name).mkdir()
            write_engine(tmp_path / name, manifest, random_weights(manifest.architecture))
            server = stack.enter_context(serving.prepared(tmp_path / name, ServerConfig(), tiers=tiers))
            places.append(parameters(server)["kv_cache_disk_directory"].string_value)
    assert places == [str(tmp_path / "kept" / name / "tensorrt_llm") for name in ("a", "b")]


def parameters(server: TritonServer) -> Any:
    """Of the model that holds the executor, as the server would read them."""
    config = server.log.parent / "completed/tensorrt_llm/config.pbtxt"
    return text_format.Parse(config.read_text(), model_config_pb2.ModelConfig()).parameters
