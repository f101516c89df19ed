"""A stand-in for a Kubernetes API server, on the loopback: discovery, reading and writing, and the checks of admission.

Real clients talk to it. What it stores has passed our own checker, so that a bad object is refused as a cluster would: 422.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from trierarch.kserve.checks.check import Checker
from trierarch.kserve.checks.finding import Severity
from trierarch.kserve.objects.resource import Resource

Place = tuple[str, str | None, str]
"""(plural, namespace, name)"""
KINDS: dict[str, dict[str, tuple[str, bool]]] = {
    "v1": {"configmaps": ("ConfigMap", True)},
    "gateway.networking.k8s.io/v1": {"httproutes": ("HTTPRoute", True)},
    "gateway.networking.k8s.io/v1beta1": {"referencegrants": ("ReferenceGrant", True)},
    "http.keda.sh/v1beta1": {"interceptorroutes": ("InterceptorRoute", True)},
    "keda.sh/v1alpha1": {"scaledobjects": ("ScaledObject", True)},
    "monitoring.coreos.com/v1": {
        "podmonitors": ("PodMonitor", True),
        "prometheusrules": ("PrometheusRule", True),
    },
    "networking.k8s.io/v1": {"networkpolicies": ("NetworkPolicy", True)},
    "policy/v1": {"poddisruptionbudgets": ("PodDisruptionBudget", True)},
    "serving.kserve.io/v1alpha1": {
        "clusterservingruntimes": ("ClusterServingRuntime", False),
        "localmodelcaches": ("LocalModelCache", False),
    },
    "serving.kserve.io/v1alpha2": {"llminferenceservices": ("LLMInferenceService", True)},
    "serving.kserve.io/v1beta1": {"inferenceservices": ("InferenceService", True)},
}
"""apiVersion -> plural -> (kind, whether in a namespace)."""
VERBS = ["create", "delete", "get", "list", "patch", "update"]


@dataclass
class ApiStandIn:
    """What is stored, and where clients find it."""

    checker: Checker
    kubeconfig: Path
    lacks: str | None = None
    """A group that this cluster does not have."""
    namespaces: tuple[str, ...] = ("models", "keda", "b")
    """Those that are there."""
    stored: dict[Place, Resource] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """KIND/NAME of every object, as they came first."""

    def admit(self, found: Resource) -> list[str]:
        """Why `found` is refused, beside what is stored."""
        others = [each for each in self.stored.values() if each["metadata"]["name"] != found["metadata"]["name"]]
        runtimes = [each for each in self.stored.values() if each["kind"].endswith("ServingRuntime")]
        beside = [found, *(each for each in others + runtimes if each["kind"] != found["kind"])]
        report = self.checker.check(_unique(beside))
        subject = f"{found['kind']}/{found['metadata']['name']}"
        return [str(each) for each in report.findings if each.severity is Severity.ERROR and each.subject == subject]


@contextmanager
def api_stand_in(directory: Path, checker: Checker, lacks: str | None = None) -> Iterator[ApiStandIn]:
    """Serve until the block ends; `directory` takes the kubeconfig."""
    stand_in = ApiStandIn(checker, directory / "kubeconfig", lacks)
    handler = type("Handler", (_Handler,), {"stand_in": stand_in, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    stand_in.kubeconfig.write_text(_kubeconfig(server.server_port), encoding="utf-8")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _kubeconfig(port: int) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "users": [{"name": "me", "user": {}}],
        }
    )


def _unique(objects: list[Resource]) -> list[Resource]:
    named = {(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]): each for each in objects}
    return list(named.values())


class _Handler(BaseHTTPRequestHandler):
    """Answers one client; `stand_in` and `lock` are the server's."""

    stand_in: ApiStandIn
    lock: threading.Lock
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        if (document := _discovery(parts, self.stand_in.lacks)) is not None:
            return self._answer(200, document)
        place = _place(parts)
        if place is None:
            return self._fail(404, "NotFound", f"no {self.path} here")
        if not place[2]:
            items = [each for key, each in self.stand_in.stored.items() if key[:2] == place[:2]]
            return self._answer(200, {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
        if place not in self.stand_in.stored:
            return self._fail(404, "NotFound", f"{place[0]} {place[2]!r} not found")
        return self._answer(200, self.stand_in.stored[place])

    def do_POST(self) -> None:
        found = self._body()
        plural, namespace, _ = _place(urlsplit(self.path).path.strip("/").split("/")) or ("", None, "")
        self._store((plural, namespace, found["metadata"]["name"]), found, 201)

    def do_PUT(self) -> None:
        place = _place(urlsplit(self.path).path.strip("/").split("/"))
        assert place is not None
        self._store(place, self._body(), 200)

    def do_PATCH(self) -> None:
        place = _place(urlsplit(self.path).path.strip("/").split("/"))
        assert place is not None
        patch, kind = self._body(), self.headers["Content-Type"]
        is_new = place not in self.stand_in.stored
        if kind.startswith("application/apply-patch"):
            assert parse_qs(urlsplit(self.path).query)["fieldManager"], "server-side apply names its manager"
            found = patch
        elif is_new:
            return self._fail(404, "NotFound", f"{place[0]} {place[2]!r} not found")
        else:
            found = _merged(deepcopy(self.stand_in.stored[place]), patch)
        return self._store(place, found, 201 if is_new else 200)

    def do_DELETE(self) -> None:
        place = _place(urlsplit(self.path).path.strip("/").split("/"))
        assert place is not None
        self.stand_in.stored.pop(place, None)
        self._answer(200, {"apiVersion": "v1", "kind": "Status", "status": "Success"})

    def _store(self, place: Place, found: Resource, status: int) -> None:
        with self.lock:
            if place[1] is not None and place[1] not in self.stand_in.namespaces:
                return self._fail(404, "NotFound", f"namespaces {place[1]!r} not found")
            reasons = self.stand_in.admit(found)
            if reasons:
                return self._fail(422, "Invalid", "; ".join(reasons))
            if place not in self.stand_in.stored:
                self.stand_in.order.append(f"{found['kind']}/{place[2]}")
            found["metadata"].setdefault("uid", f"uid-{len(self.stand_in.order)}")
            self.stand_in.stored[place] = found
        return self._answer(status, found)

    def _body(self) -> Resource:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body: Resource = yaml.safe_load(text)
        return body

    def _fail(self, code: int, reason: str, message: str) -> None:
        status = {"apiVersion": "v1", "kind": "Status", "status": "Failure"}
        self._answer(code, status | {"reason": reason, "message": message, "code": code})

    def _answer(self, code: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _discovery(parts: list[str], lacks: str | None) -> dict[str, Any] | None:
    kinds = {version: plurals for version, plurals in KINDS.items() if version.split("/")[0] != lacks}
    if parts == ["version"]:
        return {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if parts == ["apis"]:
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups(kinds)}
    version = "v1" if parts == ["api", "v1"] else "/".join(parts[1:]) if parts[0] == "apis" else ""
    if len(parts) > 3 or version not in kinds:
        return None
    resources = [
        {"name": plural, "singularName": kind.lower(), "namespaced": namespaced, "kind": kind, "verbs": VERBS}
        for plural, (kind, namespaced) in kinds[version].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def _groups(kinds: dict[str, Any]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for version in kinds:
        if "/" in version:
            group, number = version.split("/")
            groups.setdefault(group, []).append({"groupVersion": version, "version": number})
    return [{"name": name, "versions": found, "preferredVersion": found[0]} for name, found in groups.items()]


def _place(parts: list[str]) -> Place | None:
    """/apis/GROUP/VERSION/[namespaces/NAMESPACE/]PLURAL[/NAME], or /api/v1/..."""
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = None
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    return (rest[0], namespace, rest[1] if len(rest) > 1 else "") if rest else None


def _merged(value: Any, patch: Any) -> Any:
    """JSON merge patch, RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    value = value if isinstance(value, dict) else {}
    for key, item in patch.items():
        if item is None:
            value.pop(key, None)
        else:
            value[key] = _merged(value.get(key), item)
    return value
