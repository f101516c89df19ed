"""A list of paths as one parameter of a configuration: separated as in PATH, or in JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence


def paths_of(text: object) -> object:
    """The paths of a text, as strings; what is no text is left to be checked.

    Raises:
        ValueError: it is JSON, and damaged.
    """
    if not isinstance(text, str):
        return text
    return json.loads(text) if text.startswith("[") else [path for path in text.split(os.pathsep) if path]


def text_of(paths: Sequence[str]) -> str:
    """What `paths_of` reads these from."""
    is_plain = not any(os.pathsep in path or path.startswith("[") for path in paths)
    return os.pathsep.join(paths) if is_plain else json.dumps(list(paths))
