"""A pytest plugin: tests of Triton's OpenAI front end meet our gateway, unmodified.

They start Triton and the front end in their own process, through `tritonserver` and FastAPI's test client. Stand-ins for both,
and for the helpers beside the tests, hand them a client of a gateway, which is started here in front of a running Triton:

    pytest -p openai_door --triton GRPC,HTTP,METRICS FRONT_END/tests/test_chat_completions.py
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx
import pytest

from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
from trierarch.orchestrator.gateway.gateway_server import GatewayServer
from trierarch.orchestrator.gateway.source import always_on
from trierarch.orchestrator.gateway.upstream import Endpoints

_loop = asyncio.new_event_loop()
_place: list[str] = []
"""Where the gateway is, once it is there."""


class Anything:
    """Whatever is asked of it, it is."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take everything."""

    def __getattr__(self, _: str) -> Anything:
        return self

    def __call__(self, *_: Any, **__: Any) -> Anything:
        return self


class OpenAIServer:
    """The helper beside the tests: OpenAI's own clients of the server."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """It is running already."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """It goes on running."""

    @property
    def url_root(self) -> str:
        return _place[0]

    def url_for(self, *parts: str) -> str:
        return "/".join((self.url_root, *parts))

    def get_client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url_for("v1"), api_key="EMPTY")

    def get_async_client(self) -> Any:
        import openai

        return openai.AsyncOpenAI(base_url=self.url_for("v1"), api_key="EMPTY")


@contextmanager
def client_of(_: object) -> Iterator[httpx.Client]:
    """FastAPI's TestClient, of an application."""
    with httpx.Client(base_url=_place[0], trust_env=False, timeout=120) as client:
        yield client


def _module(name: str, **names: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module


_module("tritonserver", Server=Anything, ModelControlMode=Anything())
_module("fastapi", testclient=None)
_module("fastapi.testclient", TestClient=client_of)
_module("tests.utils", OpenAIServer=OpenAIServer, setup_server=Anything(), setup_fastapi_app=Anything())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where Triton is."""
    parser.addoption("--triton", required=True, metavar="GRPC,HTTP,METRICS")


@pytest.fixture(scope="session", autouse=True)
def gateway(request: pytest.FixtureRequest) -> Iterator[None]:
    """As long as the tests run."""
    grpc, http, metrics = request.config.getoption("--triton").split(",")
    endpoints = Endpoints(grpc=grpc, http=http, metrics=metrics.removeprefix("http://").removesuffix("/metrics"))
    with GatewayServer(GatewayConfig(port=0), lambda: always_on(endpoints)) as server:
        _place.append(server.url)
        yield


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutines, all in one loop, since clients outlive a test."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    _loop.run_until_complete(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
