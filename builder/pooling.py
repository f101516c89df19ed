"""What sentence-transformers' files say of how a checkpoint's embeddings are pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trierarch.builder.json_file import read_json_if_present
from trierarch.builder.manifest import Pooling

POOLING_FILE: Final = "1_Pooling/config.json"
_MODES: Final = {"pooling_mode_lasttoken": Pooling.LAST, "pooling_mode_mean_tokens": Pooling.MEAN}


def read_pooling(directory: Path) -> Pooling | None:
    """Of a checkpoint's directory; None where it says nothing, or anything but one way that engines have.

    Raises:
        CheckpointError: the file is no JSON object.
    """
    said = read_json_if_present(directory / POOLING_FILE)
    modes = {name for name, is_on in said.items() if name.startswith("pooling_mode_") and is_on is True}
    return _MODES[modes.pop()] if len(modes) == 1 and modes <= set(_MODES) else None
