"""Whether, and over how many GPUs, torch splits the engine that is asked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import GROUP_SIZE, Architecture, DrafterKind, Parallel, WeightType
from trierarch.builder.mapping import Mapping

_GROUPED: Final = frozenset({WeightType.INT8, WeightType.INT4})


def plan_parallel(
    config: BuildConfig,
    architecture: Architecture,
    drafters: tuple[DrafterKind, ...],
    stored: Collection[WeightType] = (),
) -> Parallel | None:
    """What the engine's manifest says of it; None for one GPU. `stored` is what the checkpoint has codes of.

    Raises:
        ConfigError: the model cannot be split so, with the numbers.
    """
    mapping = Mapping(config.tensor_parallel_size, config.pipeline_parallel_size)
    if mapping.world_size == 1:
        return None
    mapping.check(architecture)
    heads = [kind.value for kind in drafters if kind.is_head]
    if heads and mapping.pipeline_parallel_size > 1:
        raise ConfigError(
            f"pipeline_parallel_size is {mapping.pipeline_parallel_size}, and {heads[0]} reads hidden states of layers that "
            "other GPUs have; split each layer with --tensor-parallel-size instead, or guess without a head"
        )
    asked = stored if config.quantization is WeightType.SOURCE else (config.quantization,)
    if config.quantization is not None and not _GROUPED.isdisjoint(asked):
        _check_groups(config.quantization, architecture, mapping.tensor_parallel_size)
    return Parallel(
        tensor_parallel_size=mapping.tensor_parallel_size, pipeline_parallel_size=mapping.pipeline_parallel_size
    )


def _check_groups(quantization: WeightType, architecture: Architecture, places: int) -> None:
    """A GPU's share of the inputs of o and down has whole groups; what has none to begin with is not quantised."""
    inputs = {"o": architecture.num_heads * architecture.head_dim}
    if not all(layer.is_moe for layer in architecture.layers):
        inputs["down"] = architecture.intermediate_size
    if architecture.moe is not None:
        inputs["experts' down"] = architecture.moe.intermediate_size
    for name, size in inputs.items():
        if size % GROUP_SIZE == 0 and size // places % GROUP_SIZE:
            raise ConfigError(
                f"quantization is {quantization.value!r}, in groups of {GROUP_SIZE} inputs, and tensor_parallel_size is "
                f"{places}: a GPU's share of {name} would have {size // places} inputs; take a smaller --tensor-parallel-size, "
                "or leave --quantization out"
            )
