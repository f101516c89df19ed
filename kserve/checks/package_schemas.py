"""Schemas from installed packages, where nobody gives CRDs: KServe's SDK and the cloudcoil models.

The SDK is read and never imported: it needs a second to import, does not live in one process with tritonclient.grpc, and its
classes say all that is wanted in two tables of literals. The types of pods come from the kubernetes client, likewise.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from trierarch.kserve.checks.schema import Document, Schema, closed

SDK_KINDS: Final = {
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"): "V1alpha1ClusterServingRuntime",
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1alpha1", "LocalModelCache"): "V1alpha1LocalModelCache",
}
"""What of the SDK is as strict as the CRD; its LLMInferenceService is an untyped object."""
CLOUDCOIL_KINDS: Final = {
    ("keda.sh/v1alpha1", "ScaledObject"): "cloudcoil.models.keda.v1alpha1",
    ("serving.knative.dev/v1", "Service"): "cloudcoil.models.knative_serving.serving.v1",
    ("monitoring.coreos.com/v1", "PodMonitor"): "cloudcoil.models.prometheus_operator.v1",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "cloudcoil.models.prometheus_operator.v1",
}

_SCALARS: Final[dict[str, Document]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "object": {},
    "datetime": {"type": "string"},
}
_INT_OR_STRING: Final[Document] = {"type": ["integer", "string"]}
_OPEN: Final = (
    "ResourceQuantity",
    "IntstrIntOrString",
    "IntOrString",
    "Quantity",
    "MetricQuantity",
    "V1beta1MetricQuantity",
)


class PackageSchemas:
    """Finds schemas in what is installed, one by one: importing a package takes a second."""

    def __init__(self, search: Iterable[Path] | None = None) -> None:
        """search: directories to find the SDK in, in place of Python's own."""
        self._search = None if search is None else [str(place) for place in search]
        self._found: dict[tuple[str, str], Schema | None] = {}

    def find(self, api_version: str, kind: str) -> Schema | None:
        """The schema of `kind`; None: no package here has one."""
        key = api_version, kind
        if key not in self._found:
            self._found[key] = _cloudcoil_schema(key) if key in CLOUDCOIL_KINDS else self._sdk_schema(key)
        return self._found[key]

    def _sdk_schema(self, key: tuple[str, str]) -> Schema | None:
        path = sys.path if self._search is None else self._search
        found = next(iter(metadata.distributions(name="kserve", path=path)), None)
        if key not in SDK_KINDS or found is None or importlib.util.find_spec("kubernetes") is None:
            return None
        reader = _SdkReader(Path(str(found.locate_file("kserve/models"))))
        name = SDK_KINDS[key]
        source = f"the KServe SDK {found.version}"
        return Schema(*key, source, json_schema=reader.document(name)) if reader.knows(name) else None


class _SdkReader:
    """Reads the SDK's generated classes."""

    def __init__(self, models: Path) -> None:
        self._models = models

    def knows(self, name: str) -> bool:
        """Whether there is a class of that name."""
        return self._path(name).is_file()

    def document(self, name: str) -> Document:
        """The JSON schema of an object of that class, with the types below it as definitions."""
        definitions: dict[str, Document] = {}
        root = self._object(name, definitions)
        root["properties"] |= {"status": {}, "metadata": {"type": "object"}}
        return root | {"$defs": definitions}

    def _object(self, name: str, definitions: dict[str, Document]) -> Document:
        types, keys = self._tables(name)
        properties = {keys[field]: self._typed(kind, definitions) for field, kind in types.items()}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def _typed(self, kind: str, definitions: dict[str, Document]) -> Document:
        if kind in _SCALARS:
            return _SCALARS[kind]
        if kind.startswith("list["):
            return {"type": "array", "items": self._typed(kind[5:-1], definitions)}
        if kind.startswith("dict("):
            return {"type": "object", "additionalProperties": self._typed(kind[5:-1].split(", ", 1)[1], definitions)}
        # Names of the client's own classes are spelled in two ways.
        kind = kind.removeprefix("K8sIoApiCoreV1").removeprefix("K8sIoApiAppsV1") if kind.startswith("K8sIo") else kind
        if kind in _OPEN:
            return _INT_OR_STRING
        if kind not in definitions:
            definitions[kind] = {}  # a type may contain itself
            definitions[kind] = self._known(kind, definitions)
        return {"$ref": f"#/$defs/{kind}"}

    def _known(self, kind: str, definitions: dict[str, Document]) -> Document:
        if self.knows(kind) or _client_model(kind) is not None:
            return self._object(kind, definitions)
        return {}

    def _tables(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        client = _client_model(name)
        if client is not None:
            return client.openapi_types, client.attribute_map
        tree = ast.parse(self._path(name).read_text(encoding="utf-8"))
        (model,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        tables = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in model.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Dict)
        }
        return tables["openapi_types"], tables["attribute_map"]

    def _path(self, name: str) -> Path:
        words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name))
        return self._models / f"{words.lower()}.py"


@cache
def _client_model(name: str) -> Any:
    models = importlib.import_module("kubernetes.client.models")
    return getattr(models, name, None) or getattr(models, f"V1{name}", None)


def _cloudcoil_schema(key: tuple[str, str]) -> Schema | None:
    module = CLOUDCOIL_KINDS[key]
    if not _is_installed(module):
        return None
    model = getattr(importlib.import_module(module), key[1], None)
    if model is None:
        return None
    return Schema(*key, module.rsplit(".", 1)[0], json_schema=closed(model.model_json_schema(by_alias=True)))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
