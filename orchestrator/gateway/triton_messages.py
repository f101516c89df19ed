"""Triton's gRPC messages and the one method that the gateway calls, without the client library around them.

`tritonclient.grpc` imports numpy and clients of its own: 0.3 s and 20 MB, in a process that is to be small while it waits.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from trierarch.ensembles.triton_messages import model_config_pb2

_PACKAGE: Final = "tritonclient.grpc"
_NAME: Final = f"{_PACKAGE}.service_pb2"


def _load() -> ModuleType:
    """The generated module alone. Whoever imports the client's finds the same message classes: protobuf has one of each."""
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    path = Path(str(model_config_pb2.__file__)).with_name("service_pb2.py")
    spec = spec_from_file_location(_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)  # under no name: a name without its package is found, and then leads nowhere
    # It imports its neighbour through the package, which is not to be imported: for as long as that takes, an empty one
    # stands there.
    is_package_there = _PACKAGE in sys.modules
    package = sys.modules.setdefault(_PACKAGE, ModuleType(_PACKAGE))
    try:
        package.model_config_pb2 = model_config_pb2  # type: ignore[attr-defined]  # no module has it before
        spec.loader.exec_module(module)
    finally:
        if not is_package_there:
            del sys.modules[_PACKAGE]
    return module


service_pb2: Any = _load()
STREAM_INFER: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
"""One request in, its responses out; cancelling the call cancels the request."""
