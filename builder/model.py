"""Model: what an engine computes, decided but for its limits and its memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.decoder import Decoder
from trierarch.builder.manifest import Architecture, DType, Head, KvType, Quantization, Tokens, WeightType
from trierarch.builder.weight import Weight
from trierarch.builder.weights import plan_weights, with_vocab_size
from trierarch.builder.weights_file import CheckpointWeights, WeightsFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An engine's weights, and what its manifest says of them."""

    name: str
    source: str
    source_quantization: str | None
    architecture: Architecture
    dtype: DType
    quantization: Quantization | None
    kv_dtype: KvType
    tokens: Tokens
    weights: WeightsFile
    head: Head | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token holds."""
        return self.architecture.kv_bytes_per_token(self.kv_dtype)


def read_model(
    checkpoint: Checkpoint,
    decoder: Decoder,
    tokens: Tokens,
    dtype: DType,
    quantization: WeightType | None = None,
    kv_dtype: KvType | None = None,
    vocab_size: int | None = None,
) -> Model:
    """The model that a checkpoint holds, under the checkpoint's name.

    `kv_dtype` None takes `dtype`. Another `vocab_size` than the checkpoint's leaves embeddings out, or adds empty ones.

    Raises:
        CheckpointError: tensors are missing, misshapen, or nobody's.
        ConfigError: a matrix's shape does not allow `quantization`, or the checkpoint has no codes to keep.
    """
    architecture = decoder.architecture
    weights = plan_weights(decoder, checkpoint, dtype, quantization)
    if vocab_size not in (None, architecture.vocab_size):
        architecture = architecture.model_copy(update={"vocab_size": vocab_size})
        weights = with_vocab_size(weights, architecture.vocab_size)
    return Model(
        name=safe_name(checkpoint),
        source=checkpoint.name,
        source_quantization=checkpoint.quantization,
        architecture=architecture,
        dtype=dtype,
        quantization=None if quantization is None else _quantization(quantization, weights, architecture),
        kv_dtype=kv_dtype or KvType(dtype),
        tokens=tokens,
        weights=CheckpointWeights(checkpoint, weights),
    )


def _quantization(asked: WeightType, weights: Sequence[Weight], architecture: Architecture) -> Quantization:
    matrices = Counter(weight.codes for weight in weights if architecture.may_quantize(weight.name))
    return Quantization(
        weights=asked,
        num_int8=matrices[WeightType.INT8],
        num_int4=matrices[WeightType.INT4],
        num_fp8=matrices[WeightType.FP8],
        num_unquantized=matrices[None],
        fp8_block=next((weight.block for weight in weights if weight.block is not None), None),
    )


def safe_name(checkpoint: Checkpoint) -> str:
    """The checkpoint's, fit for an engine."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.name.rpartition("/")[2]).strip("-._")
    return name or "engine"
