"""Triton's class. It finds the role a model plays and hands everything on; a model has no code of its own.

A role's module is imported with the model, not before: auto-complete runs in every stub and needs neither torch nor
the engine.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from trierarch.python_backend.triton.contract import Role
from trierarch.python_backend.triton.lazy_role import LazyRole
from trierarch.python_backend.triton.model_config import is_decoupled, role_of
from trierarch.python_backend.triton.model_context import ModelContext, RoleModel, Watched

_ROLES = {
    Role.TENSORRT_LLM: ("trierarch.python_backend.triton.roles.tensorrt_llm", "TensorrtLlm"),
    Role.PREPROCESSING: ("trierarch.python_backend.triton.roles.preprocessing", "Preprocessing"),
    Role.POSTPROCESSING: ("trierarch.python_backend.triton.roles.postprocessing", "Postprocessing"),
    Role.TENSORRT_LLM_BLS: ("trierarch.python_backend.triton.roles.tensorrt_llm_bls", "TensorrtLlmBls"),
    Role.LLMAPI: ("trierarch.python_backend.triton.roles.llmapi", "Llmapi"),
    Role.VLLM: ("trierarch.python_backend.triton.roles.vllm", "Vllm"),
    Role.ADAPTER: ("trierarch.python_backend.triton.roles.adapter", "Adapter"),
}


_ON_DEMAND = frozenset({Role.PREPROCESSING, Role.POSTPROCESSING})
"""Roles of clients that call them by hand: most servers never need what they load, 50 MB each and a part of the start.
Until then not even their parameters are read, which completing the configuration has checked. An engine that cannot be
served fails `tensorrt_llm`, which reads the same files."""


class TritonPythonModel:
    """One instance of one model, in a process of its own."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Supply tensors, batch size and the decoupled policy."""
        from trierarch.python_backend.triton.auto_complete import complete  # Only here: it imports pydantic.

        return complete(auto_complete_model_config)

    def initialize(self, args: dict[str, str]) -> None:
        """Load what the role needs; an engine that cannot run here fails the model with one line."""
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        faulthandler.enable()  # a stub that crashes natively says nothing of its own
        config = json.loads(args["model_config"])
        role = role_of(config)
        open_role = partial(_open, role, args, config)
        self._role: RoleModel = LazyRole(open_role) if role in _ON_DEMAND else open_role()
        gc.freeze()  # what is loaded stays: looking through it would stop every stream for a seventh of a second

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Take requests; None when their responses come through the senders."""
        return self._role.execute(requests)

    def is_ready(self) -> bool:
        """Whether requests can be served; Triton 26.03 and later ask."""
        return self._role.is_ready() if isinstance(self._role, Watched) else True

    def finalize(self) -> None:
        """Finish what is running and give everything back."""
        self._role.close()
        # Triton's objects must not outlive its queues: one left to the interpreter's end crashes the process.
        del self._role
        gc.collect()


def _open(role: Role, args: dict[str, str], config: dict[str, Any]) -> RoleModel:
    from trierarch.python_backend.triton.parameters import Parameters

    context = ModelContext(
        name=args["model_name"],
        version=args["model_version"],
        engine=Path(args["model_repository"], args["model_version"], "engine"),
        parameters=Parameters.from_config(config),
        is_decoupled=is_decoupled(config),
    )
    module, name = _ROLES[role]
    opened: RoleModel = getattr(import_module(module), name)(context)
    return opened
