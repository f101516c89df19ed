"""Names of PEFT's tensors: which module of the base model each is of, and which pieces of the engine that module is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from trierarch.builder.adapter import LAYER_PIECES, STACKED
from trierarch.builder.architectures import FAMILIES
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import Architecture

_PREFIX: Final = "base_model.model."
_ADAPTER: Final = r"(?:\.[A-Za-z0-9_-]+)?"
"""A name of the adapter, such as `.default`, that some savers leave in."""
_PARTS: Final = tuple(
    (part, re.compile(rf"(?P<module>.+?)\.{pattern}"))
    for part, pattern in (
        ("a", rf"lora_A{_ADAPTER}\.weight"),
        ("b", rf"lora_B{_ADAPTER}\.weight"),
        ("embedding_a", rf"lora_embedding_A{_ADAPTER}"),
        ("embedding_b", rf"lora_embedding_B{_ADAPTER}"),
        ("magnitude", rf"lora_magnitude_vector{_ADAPTER}"),
        # Copies of what was frozen, which PEFT saves along with embeddings.
        ("base", r"(?:base_layer|original_module)\.weight"),
        ("whole", rf"modules_to_save{_ADAPTER}\.weight"),
        ("whole", r"weight"),
    )
)


@dataclass(frozen=True, slots=True)
class PeftModule:
    """A module of the base model that the adapter has tensors for."""

    name: str
    """As the base model has it, such as model.layers.0.self_attn.q_proj."""
    pieces: tuple[tuple[str, str], ...]
    """(stem, piece) as `builder/adapter.py` has them, of those whose rows it stacks, in order."""
    tensors: dict[str, str] = field(default_factory=dict)
    """a, b, embedding_a, embedding_b, magnitude, base or whole -> the name that the file has for it."""

    @property
    def is_embedding(self) -> bool:
        """Whether it is the table that tokens are looked up in."""
        return self.pieces[0][1] == "embed"

    @property
    def is_dora(self) -> bool:
        """Whether its rows have magnitudes."""
        return "magnitude" in self.tensors


def read_modules(names: Iterable[str], architecture: Architecture) -> list[PeftModule]:
    """The modules that a file with tensors of these names adapts, in the model's order.

    Raises:
        AdapterError: a tensor is of no module that may be adapted, or there twice.
    """
    modules = {name: PeftModule(name, pieces) for name, pieces in _modules(architecture).items()}
    renames = FAMILIES[architecture.family].renames if architecture.family in FAMILIES else ()
    for name in sorted(names):
        part, module = _parsed(_common(name.removeprefix(_PREFIX), renames))
        if module not in modules:
            raise AdapterError(f"{name} is of nothing that can be adapted here: {_why(module, architecture)}")
        tensors = modules[module].tensors
        if tensors.setdefault(part, name) != name:
            raise AdapterError(f"{name} and {tensors[part]} are the same tensor twice; save one adapter alone")
    return [module for module in modules.values() if module.tensors.keys() - {"base"}]


def _modules(architecture: Architecture) -> dict[str, tuple[tuple[str, str], ...]]:
    """Name of each module that may be adapted -> its pieces; by the table that the builder itself reads weights by."""
    modules: dict[str, tuple[tuple[str, str], ...]] = {}
    family = FAMILIES.get(architecture.family)
    if family is None:
        raise AdapterError(f"architecture.family is {architecture.family!r}: PEFT's names of it are not known here")
    for index, layer in enumerate(architecture.layers):
        for matrix, pieces in STACKED.items():
            if pieces[0] not in LAYER_PIECES or (layer.is_moe and matrix in ("gate_up", "down")):
                continue
            placed = tuple((f"layers.{index}.{piece}", piece) for piece in pieces)
            sources = [f"model.layers.{index}.{source}" for source in family.sources[matrix]]
            if len(sources) == 1:
                modules[sources[0]] = placed
            else:
                modules |= {source: (one,) for source, one in zip(sources, placed, strict=True)}
    return modules | {"lm_head": (("lm_head", "lm_head"),), "model.embed_tokens": (("embed", "embed"),)}


def _common(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        common, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return common
    return name


def _parsed(name: str) -> tuple[str, str]:
    """(part, module)."""
    for part, pattern in _PARTS:
        if match := pattern.fullmatch(name):
            return part, match["module"]
    return "", name


def _why(module: str, architecture: Architecture) -> str:
    if re.search(r"experts|\.mlp\.gate$|block_sparse_moe", module):
        return "experts and routers are not adapted; train the adapter on attention alone"
    layer = re.match(r"model\.layers\.(\d{1,9})\.", module)
    if layer and int(layer[1]) >= architecture.num_layers:
        return f"the model has {architecture.num_layers} layers; take an adapter of this model"
    return (
        "only LoRA on linear layers, embed_tokens and lm_head is, and those two whole; take an adapter of this model, or "
        "train one without"
    )
