"""`trierarch compose`: engines become a Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compose(
    engine: Annotated[Path, typer.Argument(help="An engine's directory.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the repository goes.")],
) -> None:
    """Compose an engine into a Triton model repository.

    The repository has TensorRT-LLM's models (tensorrt_llm, preprocessing, postprocessing, ensemble, tensorrt_llm_bls);
    each is a config.pbtxt, and the backend fills in the rest from the engine's manifest.
    """
    raise NotImplementedError
