"""Mapping: which GPU computes which part of a model, as TensorRT-LLM numbers them (its mapping.py).

Rank r is place r mod `tensor_parallel_size` of its stage, and stage r div `tensor_parallel_size` of the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import Architecture


@dataclass(frozen=True, slots=True)
class Rank:
    """One GPU's place."""

    index: int
    place: int
    """Within its stage: which part of each matrix it has."""
    stage: int
    """Of the pipeline: which layers it has."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """How a model is split."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1

    @property
    def world_size(self) -> int:
        """GPUs in all."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def ranks(self) -> Iterator[Rank]:
        """All of them, in order."""
        for index in range(self.world_size):
            stage, place = divmod(index, self.tensor_parallel_size)
            yield Rank(index, place, stage)

    def layers(self, rank: Rank, num_layers: int) -> range:
        """Layers of the whole model that `rank` computes; it numbers its own from 0."""
        count = num_layers // self.pipeline_parallel_size
        return range(rank.stage * count, (rank.stage + 1) * count)

    def is_first(self, rank: Rank) -> bool:
        """Whether it embeds."""
        return rank.stage == 0

    def is_last(self, rank: Rank) -> bool:
        """Whether it makes logits."""
        return rank.stage == self.pipeline_parallel_size - 1

    def split(self, size: int, place: int) -> tuple[int, int]:
        """(begin, end) of a place's share of `size`, of which all get as much."""
        share = size // self.tensor_parallel_size
        return place * share, (place + 1) * share

    def kv_heads(self, num_kv_heads: int, place: int) -> tuple[int, int]:
        """(begin, end) of a place's key and value heads; where there are fewer heads than places, neighbours share one."""
        if num_kv_heads >= self.tensor_parallel_size:
            return self.split(num_kv_heads, place)
        head = place * num_kv_heads // self.tensor_parallel_size
        return head, head + 1

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Rows of the embedding, filled up so that each place has as many."""
        return -(-vocab_size // self.tensor_parallel_size) * self.tensor_parallel_size

    def check(self, architecture: Architecture) -> None:
        """Whether a model can be split so.

        Raises:
            ConfigError: heads, inner sizes or layers do not divide.
        """
        obstacle = self._obstacle(architecture)
        if obstacle is not None:
            # No more places than attention heads, which are split and never repeated.
            others = (Mapping(places) for places in range(1, architecture.num_heads + 1))
            fitting = [other.tensor_parallel_size for other in others if other._obstacle(architecture) is None]
            raise ConfigError(
                f"tensor_parallel_size is {self.tensor_parallel_size}: {architecture.family} has {obstacle}; {_take(fitting)}"
            )
        stages, num_layers = self.pipeline_parallel_size, architecture.num_layers
        if num_layers % stages:
            fitting = [count for count in range(1, num_layers + 1) if num_layers % count == 0]
            raise ConfigError(
                f"pipeline_parallel_size is {stages}: {num_layers} layers do not split evenly; {_take(fitting)}"
            )

    def _obstacle(self, architecture: Architecture) -> str | None:
        """What of a layer cannot be split over this many places."""
        places = self.tensor_parallel_size
        sizes = {"attention heads": architecture.num_heads}
        if not all(layer.is_moe for layer in architecture.layers):
            sizes["elements of the MLP"] = architecture.intermediate_size
        if architecture.moe is not None:
            sizes["elements of an expert"] = architecture.moe.intermediate_size
        for what, size in sizes.items():
            if size % places:
                return f"{size} {what}, which do not split evenly"
        heads = architecture.num_kv_heads
        if heads % places and places % heads:
            return f"{heads} key and value heads, which can be neither split nor repeated evenly"
        return None


def _take(fitting: list[int]) -> str:
    """The remedy; 1 always fits."""
    *others, last = (str(count) for count in fitting)
    return f"take {', '.join(others)} or {last}" if others else f"take {last}"
