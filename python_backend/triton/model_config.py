"""What a model's configuration, as Triton gives it, parsed from JSON, says of the model itself.

Imports nothing that validates: a stub that may never be asked anything starts with this alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trierarch.builder.errors import ConfigError
from trierarch.python_backend.triton.contract import Role


def role_of(config: Mapping[str, Any]) -> Role:
    """The role of a model: its parameter, or else its name.

    Raises:
        ConfigError: neither names a role.
    """
    roles = ", ".join(Role)
    named = config.get("parameters", {}).get("role", {}).get("string_value")
    if named and named not in list(Role):
        raise ConfigError(f"model {config['name']!r}: parameter role is {named!r}; name one of {roles}")
    role = named or config["name"]
    if role not in list(Role):
        raise ConfigError(f"model {config['name']!r} has no role; name it for one or set the parameter role: {roles}")
    return Role(role)


def is_decoupled(config: Mapping[str, Any]) -> bool:
    """Whether a completed configuration lets a request have many responses."""
    return bool(config.get("model_transaction_policy", {}).get("decoupled", False))
