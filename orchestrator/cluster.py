"""Applies objects to a cluster: server-side, in order, telling how far it came."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from trierarch.builder.errors import ResourceError
from trierarch.kserve.objects.resource import MANAGER, Resource

INSTALL: Final = "pip install 'trierarch[kubernetes]'"


class ApplyFailed(ResourceError):
    """The cluster refused an object; those before it are applied."""


def apply(objects: Sequence[Resource], context: str | None, on_applied: Callable[[Resource, bool], None]) -> None:
    """Apply `objects` one after the other as field manager `trierarch`; `on_applied` hears of each, and whether it is new.

    Applying again is harmless: fields that others own are left to them, unless they contradict these.

    context: of the kubeconfig; None is its current one.

    Raises:
        ResourceError: no cluster answers, or the client is not installed.
        ApplyFailed: an object was refused, with what the cluster said and what to do.
    """
    with tempfile.TemporaryDirectory() as scratch:
        client = _client(context, Path(scratch))
        for index, found in enumerate(objects):
            try:
                on_applied(found, _apply_one(client, found))
            except Exception as error:
                raise _failure(error, found, objects[:index]) from error


def _apply_one(client: Any, found: Resource) -> bool:
    from kubernetes.dynamic.exceptions import NotFoundError

    metadata = found["metadata"]
    place = {"name": metadata["name"], "namespace": metadata.get("namespace")}
    kind = client.resources.get(api_version=found["apiVersion"], kind=found["kind"])
    try:
        client.get(kind, **place)
        is_new = False
    except NotFoundError:
        is_new = True
    client.server_side_apply(kind, body=found, field_manager=MANAGER, **place)
    return is_new


def _client(context: str | None, scratch: Path) -> Any:
    """A client that knows the cluster's kinds as they are now: by itself it would trust a file of an earlier day."""
    try:
        from kubernetes import config
        from kubernetes.dynamic import DynamicClient
    except ImportError as error:
        raise ResourceError(
            f"the cluster client is not installed: {INSTALL}, or apply with: kubectl apply -k"
        ) from error
    try:
        # Said here, since the client's own default is what the variable was when it was imported.
        connection = config.new_client_from_config(config_file=os.environ.get("KUBECONFIG"), context=context)
        return DynamicClient(connection, cache_file=str(scratch / "kinds.json"))
    except config.ConfigException as error:
        raise ResourceError(f"no cluster can be had ({error}); name one with --context, or set KUBECONFIG") from error
    except Exception as error:
        raise ResourceError(f"the cluster does not answer ({_told(error)}); see: kubectl cluster-info") from error


def _failure(error: Exception, found: Resource, applied: Sequence[Resource]) -> ApplyFailed:
    from kubernetes.dynamic.exceptions import ConflictError, ForbiddenError, NotFoundError, ResourceNotFoundError

    name = f"{found['kind']}/{found['metadata']['name']}"
    remedies = {
        ResourceNotFoundError: f"the cluster has no {found['apiVersion']} {found['kind']}: install what brings it",
        NotFoundError: f"its namespace is not there: kubectl create namespace {found['metadata'].get('namespace')}",
        ForbiddenError: "your account may not: ask for the right, or apply this object as somebody who may",
        ConflictError: "another manager owns fields of it: take them over with kubectl apply --server-side --force-conflicts",
    }
    remedy = next(
        (text for kind, text in remedies.items() if isinstance(error, kind)), "mend the spec and render again"
    )
    before = ", ".join(f"{each['kind']}/{each['metadata']['name']}" for each in applied) or "nothing"
    return ApplyFailed(
        f"{name} was not applied ({_told(error)}). {remedy[0].upper()}{remedy[1:]}. Applied before it: {before}; apply again "
        "when that is done, which changes nothing that is right"
    )


def _told(error: Exception) -> str:
    """What the cluster said, on one line."""
    body = getattr(error, "body", None)
    if body:
        try:
            return str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            pass
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
