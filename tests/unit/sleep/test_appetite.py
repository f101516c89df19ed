from __future__ import annotations

from pathlib import Path

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_engine
from trierarch.builder.manifest import WEIGHTS_NAME, FileDigest
from trierarch.orchestrator.sleep.appetite import ALLOWANCE_BYTES, appetite


def test_an_engine_takes_its_weights_its_kv_and_an_allowance_wherever_it_lies(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    architecture = tiny_architecture()
    weights = {WEIGHTS_NAME: FileDigest(sha256="0" * 64, num_bytes=1000)}
    manifest = tiny_manifest(architecture).model_copy(update={"files": weights})
    write_engine(engine, manifest, random_weights(architecture))
    assert manifest.kv_cache.num_bytes is not None
    expected = ALLOWANCE_BYTES + 1000 + manifest.kv_cache.num_bytes

    assert appetite(engine) == expected
    for model in ("tensorrt_llm", "preprocessing"):
        version = tmp_path / "repository" / model / "1"
        version.mkdir(parents=True)
        (version / "engine").symlink_to(engine)
    assert appetite(tmp_path / "repository") == expected, "one engine, found twice"
    assert appetite(tmp_path / "nothing") == ALLOWANCE_BYTES
