"""Errors of building and reading engines.

    TrierarchError
    ├── UserError              what was asked cannot be done; the message names the field, the value and the remedy
    │   ├── CheckpointError    the checkpoint is unreadable, incomplete, unsafe or of an unknown kind
    │   ├── EngineError        the engine is corrupt, foreign to this version or to this machine
    │   ├── AdapterError       the adapter is unreadable, unsafe or does not fit the engine
    │   └── ConfigError        an option is out of range or contradicts another
    └── ResourceError          the machine lacks something: disk, memory, a port, a server binary

The command line prints the message on one line and exits with a non-zero status; a traceback means a bug of ours.
"""

from __future__ import annotations


class TrierarchError(Exception):
    """Base of every error that Trierarch raises on purpose."""


class UserError(TrierarchError):
    """What was asked cannot be done."""


class CheckpointError(UserError):
    """The checkpoint is unreadable, incomplete, unsafe or of an unknown kind."""


class EngineError(UserError):
    """The engine is corrupt, or foreign to this version or machine."""


class AdapterError(UserError):
    """The adapter is unreadable, unsafe or does not fit the engine."""


class ConfigError(UserError):
    """An option is out of range or contradicts another."""


class ResourceError(TrierarchError):
    """The machine lacks disk, memory, a port or a program."""
