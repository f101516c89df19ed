"""ModelControlClient: Triton's model control extension, as far as models of adapters need it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from trierarch.builder.errors import ResourceError, UserError
from trierarch.orchestrator.fetch import FetchFailed, fetch
from trierarch.python_backend.triton.contract import Role

LOAD_SECONDS: Final = 120.0
"""For a model to load, or to answer what is open before it is unloaded."""


class ModelRefused(UserError):
    """The server will not load or unload a model; the message is the server's."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model, as the server's index has it."""

    name: str
    state: str
    """READY, UNAVAILABLE, LOADING or UNLOADING; empty where it was never loaded."""
    reason: str


class ModelControlClient:
    """Asks one server."""

    def __init__(self, url: str) -> None:
        """`url`: http://HOST:PORT of Triton's HTTP endpoint; the scheme may be left out."""
        self._url = (url if "://" in url else f"http://{url}").rstrip("/")

    def load(self, name: str) -> None:
        """Load a model, or load it anew.

        Raises:
            ModelRefused: it does not load, or the server's models are fixed.
            ResourceError: nothing answers.
        """
        self._control(name, "load")

    def unload(self, name: str) -> None:
        """Unload a model.

        Raises:
            ModelRefused: there is none, or the server's models are fixed.
            ResourceError: nothing answers.
        """
        self._control(name, "unload")

    def adapter_models(self) -> Iterator[ModelState]:
        """Models that serve adapters, by name, and those that did not load: what they serve is not known.

        Raises:
            ResourceError: nothing answers.
        """
        for entry in sorted(
            json.loads(self._fetch("/v2/repository/index", "{}")), key=lambda entry: str(entry["name"])
        ):
            model = ModelState(entry["name"], entry.get("state", ""), _first_line(entry.get("reason", "")))
            if model.state != "READY" or self._is_adapter(model.name):
                yield model

    def _is_adapter(self, name: str) -> bool:
        config: dict[str, Any] = json.loads(self._fetch(f"/v2/models/{name}/config"))
        return bool(config.get("parameters", {}).get("role", {}).get("string_value") == Role.ADAPTER)

    def _control(self, name: str, action: str) -> None:
        self._fetch(f"/v2/repository/models/{name}/{action}", "{}")

    def _fetch(self, path: str, body: str | None = None) -> str:
        try:
            return fetch(self._url + path, body, LOAD_SECONDS)
        except FetchFailed as error:
            if error.content is None:
                raise ResourceError(
                    f"nothing answers at {self._url} ({error}); start it with: trierarch serve"
                ) from error
            raise ModelRefused(_reason(error.content)) from error


def _reason(content: str) -> str:
    """What a refusal says, for people: Triton adds where in the code a model said it."""
    try:
        said = _first_line(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        said = _first_line(content)
    if "explicit model load / unload is not allowed" in said:
        return "this server's models are fixed; serve it with --model-control explicit"
    return said


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]
