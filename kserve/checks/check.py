"""Checks a set of objects: everything that can be known of them without a cluster."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from trierarch.kserve.checks.finding import Finding, Severity, subject_of
from trierarch.kserve.checks.knative import knative_findings
from trierarch.kserve.checks.metadata_rules import metadata_findings
from trierarch.kserve.checks.package_schemas import PackageSchemas
from trierarch.kserve.checks.runtime_selection import runtime_findings
from trierarch.kserve.checks.schema import Schema
from trierarch.kserve.checks.service_mode import mode_of
from trierarch.kserve.checks.structure import structure_findings
from trierarch.kserve.checks.traps import secret_findings, service_traps, startup_traps
from trierarch.kserve.checks.webhook import webhook_findings
from trierarch.kserve.objects.resource import Resource

KUBERNETES_VERSION: Final = "1.33"
"""Whose schemas core kinds are held to."""
CORE_GROUPS: Final = (
    "",
    "apps",
    "autoscaling",
    "batch",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
)
TOOLS: Final = ("jsonschema", "cel", "kubernetes_validate")
INSTALL: Final = "pip install 'trierarch[kubernetes]'"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found of a set of objects."""

    findings: tuple[Finding, ...]
    num_objects: int

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What a cluster would refuse."""
        return tuple(found for found in self.findings if found.severity is Severity.ERROR)


@dataclass(frozen=True)
class Checker:
    """Holds objects to schemas, and to the rules that are in no schema."""

    schemas: tuple[Schema, ...] = ()
    """Of two of the same kind and version the first wins."""
    packages: PackageSchemas | None = None
    """Where schemas of other kinds are looked for."""

    @cached_property
    def _by_kind(self) -> dict[tuple[str, str], Schema]:
        return {(schema.api_version, schema.kind.lower()): schema for schema in reversed(self.schemas)}

    def check(self, objects: Sequence[Resource]) -> Report:
        """Everything that is wrong, or worth knowing, in the order of the objects."""
        named = [each for each in objects if _is_named(each)]
        found = [finding for each in objects for finding in self._findings(each, named)]
        return Report((*found, *_twice(named)), len(objects))

    def source(self, found: Resource) -> str | None:
        """What says how an object of this kind looks; None: nothing here."""
        if not _is_named(found):
            return None
        schema = self._schema_of(found)
        if schema is not None:
            return schema.source
        return f"Kubernetes {KUBERNETES_VERSION}" if _is_core(found) else None

    def _findings(self, found: Resource, beside: Sequence[Resource]) -> Iterator[Finding]:
        """`beside`: the objects that are given together, as far as they say what they are."""
        yield from metadata_findings(found)
        if not _is_named(found):
            return
        structural = list(self._structure(found))
        yield from structural
        if any(finding.severity is Severity.ERROR for finding in structural):
            return  # the rules take the structure for granted
        try:
            yield from list(_rule_findings(found, beside))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Only where no schema has said so before.
            message = f"is not built as the rules of a {found['kind']} expect ({type(error).__name__}: {error})"
            yield Finding(subject_of(found), "", message)

    def _schema_of(self, found: Resource) -> Schema | None:
        schema = self._by_kind.get((found["apiVersion"], found["kind"].lower()))
        if schema is None and self.packages is not None and not _is_core(found):
            return self.packages.find(found["apiVersion"], found["kind"])
        return schema

    def _structure(self, found: Resource) -> Iterator[Finding]:
        missing = [tool for tool in TOOLS if importlib.util.find_spec(tool) is None]
        if missing:
            message = f"not held to a schema, since {', '.join(missing)} are not installed: {INSTALL}"
            yield Finding(subject_of(found), "", message, Severity.UNCHECKED)
            return
        schema = self._schema_of(found)
        if schema is not None:
            yield from structure_findings(found, schema)
        elif _is_core(found):
            yield from _core_findings(found)
        else:
            message = f"no schema of {found['apiVersion']} {found['kind']} is known here: give its CRD with --crds DIR"
            yield Finding(subject_of(found), "", message, Severity.UNCHECKED)


def _is_named(found: Resource) -> bool:
    metadata = found.get("metadata")
    texts = [found.get("apiVersion"), found.get("kind")]
    if isinstance(metadata, dict):
        texts += [metadata.get("name"), metadata.get("namespace", "")]
    return isinstance(metadata, dict) and all(isinstance(text, str) for text in texts)


def _rule_findings(found: Resource, objects: Sequence[Resource]) -> Iterator[Finding]:
    yield from secret_findings(found)
    yield from startup_traps(found)
    if found["kind"] == "InferenceService":
        yield from webhook_findings(found)
        yield from service_traps(found)
        yield from runtime_findings(found, objects)
        if mode_of(found) == "Knative":
            yield from knative_findings(found, objects)


def _core_findings(found: Resource) -> Iterator[Finding]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        yield Finding(subject_of(found), path, str(error.message))
    except kubernetes_validate.SchemaNotFoundError:
        message = f"Kubernetes {KUBERNETES_VERSION} has no {found['apiVersion']} {found['kind']}"
        yield Finding(subject_of(found), "", message)


def _is_core(found: Resource) -> bool:
    return found["apiVersion"].rpartition("/")[0] in CORE_GROUPS


def _twice(objects: Sequence[Resource]) -> Iterator[Finding]:
    seen = set()
    for found in objects:
        metadata = found["metadata"]
        identity = (found["apiVersion"], found["kind"], metadata.get("namespace"), metadata["name"])
        if identity in seen:
            yield Finding(subject_of(found), "", "is there twice; the later one would win")
        seen.add(identity)
