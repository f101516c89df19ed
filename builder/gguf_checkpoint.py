"""A GGUF file: weights dequantised on the way in or kept as codes, configuration and tokenizer from its metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from trierarch.builder.architectures import FAMILIES, Sources
from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.codes import Codes, CodeType
from trierarch.builder.errors import CheckpointError
from trierarch.builder.gguf_codes import CODE_TYPES, read_codes
from trierarch.builder.gguf_config import find_kind, synthesize_config
from trierarch.builder.gguf_tokenizer import read_gguf_tokenizer
from trierarch.builder.hf_config import HfConfig

TENSOR_TYPES: Final = (
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
)

_OUTER_NAMES: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES: Final[Mapping[str, tuple[str, int]]] = {
    "attn_norm": ("attn_norm", 0),
    "attn_q": ("qkv", 0),
    "attn_k": ("qkv", 1),
    "attn_v": ("qkv", 2),
    "attn_qkv": ("qkv", 0),
    "attn_q_norm": ("q_norm", 0),
    "attn_k_norm": ("k_norm", 0),
    "attn_output": ("o", 0),
    "post_attention_norm": ("post_attn_norm", 0),
    "ffn_norm": ("mlp_norm", 0),
    "ffn_gate": ("gate_up", 0),
    "ffn_up": ("gate_up", -1),
    "ffn_down": ("down", 0),
    "post_ffw_norm": ("post_mlp_norm", 0),
    "ffn_gate_inp": ("router", 0),
    "ffn_gate_exps": ("experts.gate_up", 0),
    "ffn_up_exps": ("experts.gate_up", 1),
    "ffn_down_exps": ("experts.down", 0),
}
"""GGUF's name within a layer -> the engine weight and which of its sources; -1 is up, also where gate is fused in."""
_ROPE_FACTORS: Final = {"rope_freqs": "freqs", "rope_factors_long": "long", "rope_factors_short": "short"}


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies: a tensor of the file, or one expert's slice of it."""

    tensor: gguf.ReaderTensor
    expert: int | None
    num_heads: int | None
    """Set where rows are interleaved and must be brought back in halves."""


class _Reader(gguf.GGUFReader):  # type: ignore[misc]  # the package has no types
    """Reads through a plain array: slicing a memmap, once for each token of the vocabulary, takes most of the time."""

    @property
    def data(self) -> NDArray[np.uint8]:
        return self._plain

    @data.setter
    def data(self, mapped: NDArray[np.uint8]) -> None:
        self._plain = mapped.view(np.ndarray)


class GgufCheckpoint:
    """The file stays memory-mapped; a tensor is dequantised when it is loaded."""

    needless: Final[frozenset[str]] = frozenset()
    has_folded_norms: Final = True

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Read the metadata and the tensors' places.

        Raises:
            CheckpointError: the file is damaged, or of an unknown architecture or tensor type.
        """
        self.name = name or path.stem
        reader, self._metadata = _open(path)
        _, kind = find_kind(self._metadata)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        for tensor in reader.tensors:
            if tensor.tensor_type.name not in TENSOR_TYPES:
                raise CheckpointError(
                    f"{tensor.name} is of type {tensor.tensor_type.name}: this builder reads {', '.join(TENSOR_TYPES)}; "
                    "take another quantisation of the model"
                )
        embedding = tensors.get("token_embd.weight")
        if embedding is None:
            raise CheckpointError("the GGUF lacks token_embd.weight; take a file that holds the whole model")
        factors = {
            key: _dequantize(tensors.pop(f"{stem}.weight")).flatten().tolist()
            for stem, key in _ROPE_FACTORS.items()
            if f"{stem}.weight" in tensors
        }
        self.config: Mapping[str, Any] = synthesize_config(
            self._metadata, int(embedding.shape[-1]), set(tensors), factors
        )
        parsed = HfConfig.parse(self.config)
        heads = (parsed.num_attention_heads, parsed.kv_heads)
        self._stored: dict[str, _Stored] = {}
        for tensor in tensors.values():
            self._place(tensor, FAMILIES[kind.architecture].sources, heads if kind.is_interleaved else None)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes in rows first, as Hugging Face has them; GGUF writes them the other way round."""
        return {
            name: tuple(int(size) for size in reversed(one.tensor.shape))[0 if one.expert is None else 1 :]
            for name, one in self._stored.items()
        }

    @cached_property
    def code_types(self) -> Mapping[str, CodeType]:
        """Those of a type that an engine can keep."""
        types = {name: one.tensor.tensor_type.name for name, one in self._stored.items()}
        return {name: CODE_TYPES[tensor_type] for name, tensor_type in types.items() if tensor_type in CODE_TYPES}

    @property
    def quantization(self) -> str | None:
        """The type that most of the tensors with more than one dimension are stored in."""
        types = Counter(one.tensor.tensor_type.name for one in self._stored.values() if len(one.tensor.shape) > 1)
        return types.most_common(1)[0][0] if types else None

    def load(self, name: str) -> torch.Tensor:
        """One tensor as float32, its rows in the order Hugging Face has them."""
        stored = self._stored[name]
        values = torch.from_numpy(np.require(_dequantize(stored.tensor, stored.expert), np.float32, ["C", "W"]))
        return values if stored.num_heads is None else values[_halves(len(values), stored.num_heads)]

    def load_codes(self, name: str) -> Codes:
        """Its codes, scales and offsets just as they are stored, rows in the order Hugging Face has them."""
        stored = self._stored[name]
        data = stored.tensor.data if stored.expert is None else stored.tensor.data[stored.expert]
        read = read_codes(stored.tensor.tensor_type.name, data)
        if not all(one.isfinite().all() for one in (read.scales, read.offsets) if one is not None):
            raise CheckpointError(f"{name} holds a scale that is not finite; download the checkpoint again")
        return read if stored.num_heads is None else read.rows(_halves(len(data), stored.num_heads))

    def tokenizer(self, vocab_size: int) -> TokenizerFiles:
        """Rebuilt from the metadata."""
        return read_gguf_tokenizer(self._metadata, vocab_size)

    def _place(self, tensor: gguf.ReaderTensor, sources: Sources, heads: tuple[int, int] | None) -> None:
        stem, _, ending = tensor.name.rpartition(".")
        if stem in _OUTER_NAMES:
            self._stored[f"{_OUTER_NAMES[stem]}.{ending}"] = _Stored(tensor, None, None)
            return
        prefix, _, rest = stem.partition(".")
        layer, _, inner = rest.partition(".")
        if prefix != "blk" or inner not in _LAYER_NAMES or _LAYER_NAMES[inner][0] not in sources:
            self._stored[tensor.name] = _Stored(tensor, None, None)  # nobody's: the builder will name it
            return
        weight, part = _LAYER_NAMES[inner]
        pattern = f"model.layers.{layer}.{sources[weight][part]}.{ending}"
        num_heads = {"attn_q": heads[0], "attn_k": heads[1]}.get(inner) if heads else None
        if not inner.endswith("_exps"):
            self._stored[pattern] = _Stored(tensor, None, num_heads)
            return
        for expert in range(int(tensor.shape[-1])):
            self._stored[pattern.format(e=expert)] = _Stored(tensor, expert, None)


def _open(path: Path) -> tuple[gguf.GGUFReader, dict[str, Any]]:
    try:
        reader = _Reader(path)
        return reader, {key: field.contents() for key, field in reader.fields.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # what the reader raises on a damaged file follows from where the damage is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path.name} is not a readable GGUF file ({reason}); it may be cut short: download it again"
        ) from error


def _halves(num_rows: int, num_heads: int) -> torch.Tensor:
    """The order that brings each head's rows back from pairs: those at even places come first."""
    return torch.arange(num_rows).view(num_heads, -1, 2).swapaxes(1, 2).flatten()


def _dequantize(tensor: gguf.ReaderTensor, expert: int | None = None) -> NDArray[np.float32]:
    data = tensor.data if expert is None else tensor.data[expert]
    values: NDArray[np.float32] = gguf.quants.dequantize(data, tensor.tensor_type)
    return values
