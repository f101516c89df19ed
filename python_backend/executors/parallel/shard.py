"""Shard: what one rank has of a model. It is a model itself, of a smaller Architecture, whose sums are still to be summed.

Within a stage each rank, at its *place*, has some heads with their rows of qkv and their inputs of o, and some elements of
the MLP, or of each expert, with their rows of gate_up and their inputs of down. What o and down give is then a rank's part
of a sum over the places. Of the logits each rank of all stages makes its rows. Everything else is whole on every rank that
needs it: norms, routers, and the table of embeddings in the first stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from trierarch.builder.manifest import Architecture, EngineManifest
from trierarch.builder.mapping import Mapping, Rank

Spans = tuple[tuple[int, int], ...]
"""(begin, end) of runs that are put one behind the other."""


class Axis(Enum):
    """Of a linear weight."""

    OUTPUTS = "outputs"
    INPUTS = "inputs"


@dataclass(frozen=True, slots=True)
class Cut:
    """What a rank takes of a tensor."""

    axis: Axis
    spans: Spans


@dataclass(frozen=True)
class Shard:
    """One rank's."""

    whole: Architecture
    mapping: Mapping
    rank: Rank

    @property
    def is_first(self) -> bool:
        """Whether it embeds."""
        return self.mapping.is_first(self.rank)

    @property
    def has_biases(self) -> bool:
        """Whether its part of what o and down give has their biases, which one place adds."""
        return self.rank.place == 0

    @cached_property
    def layers(self) -> range:
        """Layers of the whole model that it computes."""
        return self.mapping.layers(self.rank, self.whole.num_layers)

    @cached_property
    def architecture(self) -> Architecture:
        """Its own model's. `vocab_size` is of the logits that it makes, from an lm_head of its own."""
        whole, places = self.whole, self.mapping.tensor_parallel_size
        begin, end = self._kv_heads
        first, last = self.logits
        moe = whole.moe
        return whole.model_copy(
            update={
                "vocab_size": last - first,
                "num_heads": whole.num_heads // places,
                "num_kv_heads": end - begin,
                "intermediate_size": max(1, whole.intermediate_size // places),  # unused where all layers have experts
                "layers": tuple(whole.layers[index] for index in self.layers),
                "tie_embeddings": False,
                "moe": None
                if moe is None
                else moe.model_copy(update={"intermediate_size": moe.intermediate_size // places}),
            }
        )

    @cached_property
    def logits(self) -> tuple[int, int]:
        """(begin, end) of its rows of lm_head; those of several ranks may differ by one."""
        size, count = self.whole.vocab_size, self.mapping.world_size
        return self.rank.index * size // count, (self.rank.index + 1) * size // count

    @property
    def max_logits(self) -> int:
        """Rows of lm_head that the rank with the most has."""
        return -(-self.whole.vocab_size // self.mapping.world_size)

    @property
    def _kv_heads(self) -> tuple[int, int]:
        return self.mapping.kv_heads(self.whole.num_kv_heads, self.rank.place)

    def piece(self, name: str) -> tuple[int, int]:
        """(begin, end) of what it has of the outputs of q, k, v, gate, up and lm_head, and of the inputs of o and down."""
        whole, place = self.whole, self.rank.place
        if name == "lm_head":
            return self.logits
        if name in ("q", "o"):
            return _scaled(self.mapping.split(whole.num_heads, place), whole.head_dim)
        if name in ("k", "v"):
            return _scaled(self._kv_heads, whole.head_dim)
        return self.mapping.split(whole.intermediate_size, place)

    def cut(self, name: str) -> Cut | None:
        """What it takes of a weight, by the name it has for it; None is all of it."""
        if name == "lm_head.weight":
            return Cut(Axis.OUTPUTS, (self.logits,))
        layer = re.fullmatch(r"layers\.\d+\.(.+)\.(weight|bias)", name)
        if layer is None:
            return None
        stem, kind = layer.groups()
        whole = self.whole
        if stem == "qkv":
            queries, keys = whole.num_heads * whole.head_dim, whole.num_kv_heads * whole.head_dim
            k, v = _moved(self.piece("k"), queries), _moved(self.piece("v"), queries + keys)
            return Cut(Axis.OUTPUTS, (self.piece("q"), k, v))
        inner = whole.intermediate_size
        if stem.startswith("experts."):
            assert whole.moe is not None
            inner = whole.moe.intermediate_size
        share = self.mapping.split(inner, self.rank.place)
        if stem.endswith("gate_up"):
            return Cut(Axis.OUTPUTS, (share, _moved(share, inner)))
        if kind == "weight" and stem.endswith("down"):
            return Cut(Axis.INPUTS, (share,))
        if kind == "weight" and stem == "o":
            return Cut(Axis.INPUTS, (self.piece("o"),))
        return None

    def sources(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """(its own name, name in the whole model) of every weight that it has, of those with these `names`."""
        for name in names:
            head, _, rest = name.partition(".")
            if head == "layers":
                index, _, rest = rest.partition(".")
                if int(index) in self.layers and (self.has_biases or rest not in ("o.bias", "down.bias")):
                    yield f"layers.{int(index) - self.layers.start}.{rest}", name
            elif name != "embed.weight" or self.is_first:
                yield name, name
        if self.whole.tie_embeddings:
            yield "lm_head.weight", "embed.weight"


def shards(manifest: EngineManifest) -> tuple[Shard, ...]:
    """Of all ranks of an engine, in order.

    Raises:
        ConfigError: the model cannot be split as the manifest says.
    """
    assert manifest.parallel is not None
    mapping = Mapping(manifest.parallel.tensor_parallel_size, manifest.parallel.pipeline_parallel_size)
    mapping.check(manifest.architecture)
    return tuple(Shard(manifest.architecture, mapping, rank) for rank in mapping.ranks())


def _scaled(span: tuple[int, int], factor: int) -> tuple[int, int]:
    return span[0] * factor, span[1] * factor


def _moved(span: tuple[int, int], by: int) -> tuple[int, int]:
    return span[0] + by, span[1] + by
