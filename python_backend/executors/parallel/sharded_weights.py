"""A rank's weights, cut out of the engine's mapped file: no rank reads what others have, or holds it in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.parallel.shard import Axis, Cut, Shard
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.weights import Weights, load_weights

_CPU = torch.device("cpu")


def load_shard(engine: Path, manifest: EngineManifest, shard: Shard, device: torch.device) -> Weights:
    """A rank's weights on `device`, by the names of its own architecture.

    Raises:
        EngineError: the file is missing or corrupt or not what the manifest says; a quantised matrix would be cut within a
            group.
    """
    whole = load_weights(engine, manifest, _CPU)
    own: dict[str, Matrix] = {}
    for name, source in shard.sources(whole):
        cut = shard.cut(name)
        # A tied lm_head is rows of the table that is there already.
        is_tied = source == "embed.weight" and source in own
        stored = own[source] if is_tied else whole[source]
        weight = stored if cut is None else taken(stored, cut, source)
        # What is dense on the CPU stays a view of the file.
        own[name] = _each(weight, lambda part: part.contiguous().to(device))
    return own


def taken(weight: Matrix, cut: Cut, name: str) -> Matrix:
    """A rank's share of a weight. name: for people.

    Raises:
        EngineError: the share does not end with a group of inputs that have one scale.
    """
    if isinstance(weight, Fp8Matrix):
        return weight.cut(-1 if cut.axis is Axis.INPUTS else -2, cut.spans)
    shape = tuple(weight.shape)
    return _each(weight, lambda part: _taken(part, cut, shape, name))


def _each(weight: Matrix, change: Callable[[torch.Tensor], torch.Tensor]) -> Matrix:
    """The weight with each of its tensors changed."""
    if isinstance(weight, torch.Tensor):
        return change(weight)
    parts = {field.name: getattr(weight, field.name) for field in fields(weight)}
    tensors = {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}
    whole: Any = weight  # of whichever kind
    changed: Matrix = replace(whole, **{name: change(part) for name, part in tensors.items()})
    return changed


def _taken(part: torch.Tensor, cut: Cut, shape: tuple[int, ...], name: str) -> torch.Tensor:
    """Of one tensor of a weight of this shape, whose elements are of one input, or of several that lie side by side."""
    per = 1
    axis = max(0, len(shape) - 2)
    if cut.axis is Axis.INPUTS:
        axis = len(shape) - 1
        per = shape[-1] // part.shape[-1]
        if any(place % per for span in cut.spans for place in span):
            share = sum(end - begin for begin, end in cut.spans)
            raise EngineError(
                f"{name} is quantised in groups of {per} inputs, and a rank's share is {share}: build with a smaller "
                "--tensor-parallel-size, or without --quantization"
            )
    pieces = [part.narrow(axis, begin // per, (end - begin) // per) for begin, end in cut.spans]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)
