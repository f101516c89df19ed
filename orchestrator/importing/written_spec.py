"""What an import leaves behind for later: the spec file that `build`, `compose` and `deploy` go on from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from trierarch.builder.config import BuildConfig
from trierarch.kserve.spec import MAX_NAME, NAME_PATTERN
from trierarch.orchestrator.composition_spec import CompositionSpec, section_of
from trierarch.orchestrator.importing.plan import ImportPlan
from trierarch.orchestrator.spec_file import Section, write_spec

_NAME: Final = "llm"
"""Of a service whose repository has a name that KServe would refuse."""


def write_import(path: Path, repository: Path, plan: ImportPlan, config: BuildConfig, spec: CompositionSpec) -> None:
    """Write the spec of `plan`: what `config` builds and `spec` composes, under the report of where each setting went."""
    sections = {
        Section.BUILD: _build_section(config),
        Section.COMPOSE: section_of(spec),
        Section.DEPLOY: _deploy_section(spec),
    }
    write_spec(path, sections, _report(repository, plan))


def _build_section(config: BuildConfig) -> dict[str, Any]:
    asked = config.model_dump(mode="json", exclude_unset=True, exclude={"overwrite"})
    if Path(config.model).exists():
        asked["model"] = str(Path(config.model).resolve())
    return asked


def _deploy_section(spec: CompositionSpec) -> dict[str, Any]:
    """What is of the machine that serves goes there, too: an engine is deployed, and no repository."""
    host_bytes = spec.options.kv_host_bytes
    return {"name": _service_name(spec.output)} | ({"kv_tiers": {"host_bytes": host_bytes}} if host_bytes else {})


def _service_name(repository: Path) -> str:
    name = repository.name
    return name if re.fullmatch(NAME_PATTERN, name) and len(name) <= MAX_NAME else _NAME


def _report(repository: Path, plan: ImportPlan) -> Iterator[str]:
    yield f"Imported from {repository} by trierarch import. Go on with:"
    yield "  trierarch build --spec THIS, trierarch compose --spec THIS, trierarch deploy --spec THIS --profile ..."
    yield "What became of its settings:"
    for entry in plan.entries:
        setting = f"{entry.model}: {entry.name} {entry.value}".rstrip(": ")
        yield f"  {setting}: {entry.fate.value}: {entry.why}"
