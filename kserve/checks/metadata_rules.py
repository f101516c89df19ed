"""Rules that hold for every object and are in no schema: names, labels, annotations, quantities."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from trierarch.kserve.checks.finding import Finding, subject_of
from trierarch.kserve.objects.resource import Resource
from trierarch.kserve.quantity import is_quantity

_LABEL: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_DNS_LABEL: Final = re.compile(_LABEL)
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_MAX_ANNOTATIONS: Final = 256 * 1024
_SERVICE_KINDS: Final = ("Service", "InferenceService", "LLMInferenceService", "Namespace")
"""Kinds whose names become DNS labels."""
_CLUSTER_KINDS: Final = (
    "ClusterServingRuntime",
    "ClusterStorageContainer",
    "LocalModelCache",
    "LocalModelNodeGroup",
    "LocalModelNode",
    "Namespace",
)
_ENV_NAME: Final = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


def metadata_findings(found: Resource) -> Iterator[Finding]:
    """What Kubernetes would refuse of `found`, whatever its kind."""
    subject = subject_of(found)
    for key in ("apiVersion", "kind"):
        if not isinstance(found.get(key), str):
            yield Finding(subject, key, "is missing: every object has one")
    metadata = found.get("metadata")
    if not isinstance(metadata, dict):
        yield Finding(subject, "metadata", "is missing: every object has a name")
        return
    yield from _name_findings(subject, found.get("kind"), metadata)
    for path, labels in _label_maps(found):
        yield from _labels(subject, path, labels)
    yield from _annotations(subject, metadata.get("annotations") or {})
    yield from _walk(subject, "", {key: value for key, value in found.items() if key != "metadata"})


def _name_findings(subject: str, kind: Any, metadata: dict[str, Any]) -> Iterator[Finding]:
    name = metadata.get("name")
    is_label = kind in _SERVICE_KINDS
    limit, pattern = (63, _DNS_LABEL) if is_label else (253, _SUBDOMAIN)
    if not isinstance(name, str) or len(name) > limit or not pattern.fullmatch(name):
        dots = "" if is_label else ", '.'"
        yield Finding(
            subject,
            "metadata.name",
            f"{name!r} is no name: lower-case letters, digits, '-'{dots}, at most {limit} characters",
        )
    namespace = metadata.get("namespace")
    if kind in _CLUSTER_KINDS and namespace:
        yield Finding(subject, "metadata.namespace", f"a {kind} belongs to the whole cluster and has none")
    if namespace is not None and (
        not isinstance(namespace, str) or len(namespace) > 63 or not _DNS_LABEL.fullmatch(namespace)
    ):
        yield Finding(
            subject, "metadata.namespace", f"{namespace!r} is no name: lower-case letters, digits, '-', at most 63"
        )


def _label_maps(found: Resource) -> Iterator[tuple[str, Any]]:
    yield "metadata.labels", found["metadata"].get("labels") or {}
    for path, value in _objects("", found):
        for key in ("matchLabels", "nodeSelector"):
            if isinstance(value.get(key), dict):
                yield f"{path}.{key}".lstrip("."), value[key]


def _labels(subject: str, path: str, labels: Any) -> Iterator[Finding]:
    if not isinstance(labels, dict):
        yield Finding(subject, path, "is no map")
        return
    for key, value in labels.items():
        yield from _key(subject, path, key)
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            yield Finding(
                subject, f"{path}.{key}", f"{value!r} is no label value: at most 63 letters, digits, '-', '_', '.'"
            )


def _annotations(subject: str, annotations: Any) -> Iterator[Finding]:
    if not isinstance(annotations, dict):
        yield Finding(subject, "metadata.annotations", "is no map")
        return
    for key, value in annotations.items():
        yield from _key(subject, "metadata.annotations", key)
        if not isinstance(value, str):
            yield Finding(subject, f"metadata.annotations.{key}", f"{value!r} is no text: put it in quotes")
    size = sum(len(str(key)) + len(str(value)) for key, value in annotations.items())
    if size > _MAX_ANNOTATIONS:
        yield Finding(subject, "metadata.annotations", f"are {size} bytes, more than {_MAX_ANNOTATIONS}")


def _key(subject: str, path: str, key: Any) -> Iterator[Finding]:
    prefix, slash, name = str(key).rpartition("/")
    is_prefix = not slash or (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix))
    if not is_prefix or not _KEY_NAME.fullmatch(name):
        yield Finding(
            subject, path, f"{key!r} is no key: an optional DNS name and '/', then at most 63 letters, digits, '-_.'"
        )


def _walk(subject: str, path: str, value: Any) -> Iterator[Finding]:
    for place, found in _objects(path, value):
        for kind in ("requests", "limits"):
            amounts = found.get(kind)
            if place.endswith("resources") and isinstance(amounts, dict):
                yield from _quantities(subject, f"{place}.{kind}", amounts)
        if isinstance(found.get("env"), list):
            yield from _variables(subject, f"{place}.env".lstrip("."), found["env"])


def _quantities(subject: str, path: str, amounts: dict[str, Any]) -> Iterator[Finding]:
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, str | int | float) or not is_quantity(str(amount)):
            yield Finding(
                subject, f"{path}.{name}", f"{amount!r} is no quantity: write text such as '500m', '2' or '4Gi'"
            )


def _variables(subject: str, path: str, variables: list[Any]) -> Iterator[Finding]:
    for index, variable in enumerate(variables):
        if not isinstance(variable, dict):
            continue
        name = variable.get("name")
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            yield Finding(subject, f"{path}[{index}].name", f"{name!r} is no name of a variable")
        if "value" in variable and not isinstance(variable["value"], str):
            yield Finding(subject, f"{path}[{index}].value", f"{variable['value']!r} is no text: put it in quotes")


def _objects(path: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, object) of every object in `value`."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from _objects(f"{path}.{key}".lstrip("."), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _objects(f"{path}[{index}]", item)
