"""Reading JSON that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from trierarch.builder.errors import CheckpointError

MAX_JSON_BYTES: Final = 64 << 20
"""Far above any configuration or index, far below what would exhaust memory."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is missing, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path.name} has {path.stat().st_size} bytes: at most {MAX_JSON_BYTES} are read")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent.name} has no {path.name}; download the checkpoint again") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read ({error}); download the checkpoint again") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path.name} is not a JSON object; download the checkpoint again")
    return raw


def read_json_if_present(path: Path) -> dict[str, Any]:
    """As `read_json`, but an absent file is an empty object."""
    return read_json(path) if path.is_file() else {}
