"""Engines that exist as manifests alone, specs to deploy them, and what to hold the results to."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.manifest import (
    MANIFEST_NAME,
    WEIGHTS_NAME,
    DType,
    EngineManifest,
    FileDigest,
    KvCache,
    KvType,
    Limits,
    Lora,
    Requires,
)
from trierarch.kserve.checks.check import Checker
from trierarch.kserve.checks.crd_schemas import read_crds
from trierarch.kserve.checks.package_schemas import PackageSchemas
from trierarch.kserve.parse_spec import parse_spec
from trierarch.kserve.spec import DeploySpec, KServeVersion

CRDS = Path(__file__).parents[3] / "shared/crds"
"""Schemas of the upstream projects' CRDs, on machines that have them beside the checkout."""
KSERVE_CRDS = {KServeVersion.V0_20: "kserve-v0.20.0", KServeVersion.V0_21: "kserve-master-aaac4e2"}
OTHER_CRDS = ("gaie-v1.6.0+", "keda", "keda-http-add-on", "knative-serving")


def weighty_engine(num_bytes: int = 3_000_000_000, **changes: Any) -> EngineManifest:
    """The manifest of an engine whose weights are `num_bytes` long, and which takes adapters; nothing else of it exists."""
    tiny = tiny_manifest(tiny_architecture(), DType.BFLOAT16)
    fields = {
        "lora": Lora(max_rank=8, max_adapters=2, host_bytes=1 << 28),
        "limits": Limits(max_seq_len=1024, max_batch_size=16, max_queue_size=32),
        "kv_cache": KvCache(dtype=KvType.BFLOAT16, num_bytes=1 << 30, bytes_per_token=1 << 16),
        "files": {WEIGHTS_NAME: FileDigest(num_bytes=num_bytes, sha256="0" * 64)},
        "requires": Requires(device="any"),
    }
    return tiny.model_copy(update=fields | changes)


def write_engine(directory: Path, engine: EngineManifest | None = None) -> Path:
    """An engine's directory with nothing in it but its manifest, which is all that deploying reads."""
    directory.mkdir(parents=True)
    text = (engine or weighty_engine()).model_dump_json(indent=2)
    (directory / MANIFEST_NAME).write_text(text, encoding="utf-8")
    return directory


def raw_spec(**changes: Any) -> dict[str, Any]:
    """A small spec as a file has it."""
    return {
        "name": "tiny",
        "namespace": "models",
        "profile": "keda",
        "image": "registry.example/trierarch:0.1.0",
        "storage": {"uri": "oci+native://registry.example/engines/tiny:1"},
        "gpu": {"product": "L4"},
    } | changes


def small_spec(**changes: Any) -> DeploySpec:
    """The same, read."""
    return parse_spec(raw_spec(**changes))


def crd_directories(version: KServeVersion = KServeVersion.V0_20) -> list[Path]:
    """Directories of CRDs of one KServe and of what belongs to it; none where the machine has none."""
    return [CRDS / name for name in (KSERVE_CRDS[version], *OTHER_CRDS)] if CRDS.is_dir() else []


@cache
@cache
def checker_for(version: KServeVersion = KServeVersion.V0_20) -> Checker:
    """The strictest checker of this machine: CRDs where it has them, else what installed packages know."""
    schemas = tuple(schema for directory in crd_directories(version) for schema in read_crds(directory))
    return Checker(schemas, PackageSchemas())
