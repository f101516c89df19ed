"""Triton's ModelConfig message, without the gRPC client that it is shipped beside: that takes 0.2 s and 30 MB to import."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

_NAME: Final = "tritonclient.grpc.model_config_pb2"


def _load() -> ModuleType:
    """The generated module alone, under its own name, so that whoever imports the client too has the same messages."""
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    package = find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations, "tritonclient is a dependency, and a package"
    spec = spec_from_file_location(_NAME, Path(package.submodule_search_locations[0], "grpc", "model_config_pb2.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[_NAME] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


model_config_pb2 = _load()
