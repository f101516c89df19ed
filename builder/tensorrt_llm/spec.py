"""Spec: what is to be built of which checkpoint, decided but for TensorRT-LLM's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trierarch.builder.adapter import LAYER_PIECES, piece_shape
from trierarch.builder.checkpoint import Checkpoint, TokenizerFiles
from trierarch.builder.config import BuildConfig, TokenSampler
from trierarch.builder.decoder import Decoder
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import Architecture, DrafterKind, DType, Flow, KvCache, KvType, Limits, Lora
from trierarch.builder.mapping import Mapping
from trierarch.builder.tensorrt_llm.quantization import Format
from trierarch.builder.tensorrt_llm.releases import Release
from trierarch.builder.tensorrt_llm.sampler import choose_sampler

LORA_MODULES: Final = ("attn_q", "attn_k", "attn_v", "attn_dense", "mlp_h_to_4h", "mlp_gate", "mlp_4h_to_h")
"""TensorRT-LLM's names of LAYER_PIECES, in their order."""
_ATTENTION_MODULES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint that is read."""

    checkpoint: Checkpoint
    decoder: Decoder
    tokenizer: TokenizerFiles

    @property
    def family(self) -> str:
        """As Hugging Face names it."""
        return self.decoder.architecture.family


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is to be built, decided but for its names."""

    config: BuildConfig
    """With the target's own defaults."""
    asked: frozenset[str]
    """Fields that somebody chose."""
    release: Release
    flow: Flow
    architecture: Architecture
    dtype: DType
    limits: Limits
    kv_cache: KvCache
    split: Mapping
    quant_algo: str | None
    kv_algo: str | None
    lora: Lora | None
    drafter: DrafterKind | None
    max_draft_len: int
    sampler: TokenSampler

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that `kv_cache_bytes` hold, over all GPUs together."""
        num_bytes = self.kv_cache.num_bytes
        return None if num_bytes is None else num_bytes // self.kv_cache.bytes_per_token

    @property
    def windows(self) -> list[int] | None:
        """How far back each layer attends; None where all see everything."""
        layers = self.architecture.layers
        if all(layer.window is None for layer in layers):
            return None
        return [layer.window or self.limits.max_seq_len for layer in layers]

    @property
    def lora_modules(self) -> list[str]:
        """What adapters may adapt: never experts."""
        return list(LORA_MODULES if self.architecture.moe is None else LORA_MODULES[:_ATTENTION_MODULES])

    @property
    def adapter_bytes(self) -> int:
        """Of an adapter of the highest rank on everything that may be adapted; 0 where none is taken."""
        if self.lora is None:
            return 0
        pieces = LAYER_PIECES[: len(self.lora_modules)]
        sides = sum(sum(piece_shape(self.architecture, piece)) for piece in pieces)
        return self.lora.max_rank * self.architecture.num_layers * sides * self.dtype.num_bytes

    def lora_module_layers(self, num_adapters: int) -> int:
        """Rows of rank 1 that so many of the largest adapters have: what PeftCacheConfig counts in."""
        assert self.lora is not None
        return self.lora.max_rank * self.architecture.num_layers * len(self.lora_modules) * num_adapters


def make_spec(
    config: BuildConfig,
    asked: frozenset[str],
    release: Release,
    flow: Flow,
    source: Source,
    quantization: Format | None,
    kv: str | None,
    drafter: DrafterKind | None,
) -> Spec:
    """What `config` asks of a checkpoint; `asked` are the fields that somebody chose.

    Raises:
        ConfigError: keys and values cannot be of the type or in the memory that was asked for, or nobody samples so.
    """
    decoder, architecture = source.decoder, source.decoder.architecture
    dtype = config.dtype or _stored_dtype(source.checkpoint)
    split = Mapping(config.tensor_parallel_size, config.pipeline_parallel_size)
    kv_dtype = KvType(dtype) if kv is None else KvType.FP8
    if config.kv_cache_dtype not in (None, kv_dtype):
        raise ConfigError(
            f"kv_cache_dtype is {config.kv_cache_dtype.value!r}: for TensorRT-LLM it is fp8, or that of the activations, "
            f"which is {dtype.value}; leave it out"
        )
    # Heads that are on several GPUs count as often.
    copies = max(1, split.tensor_parallel_size // architecture.num_kv_heads)
    kv_cache = KvCache(
        dtype=kv_dtype,
        block_size=config.block_size,
        num_bytes=config.kv_cache_bytes,
        memory_fraction=config.kv_cache_memory_fraction,
        bytes_per_token=architecture.kv_bytes_per_token(kv_dtype, has_row_scales=False) * copies,
        enable_prefix_caching=config.enable_prefix_caching,
    )
    _check_block(kv_cache)
    return Spec(
        config=config,
        asked=asked,
        release=release,
        flow=flow,
        architecture=architecture,
        dtype=dtype,
        limits=config.limits(decoder.max_seq_len),
        kv_cache=kv_cache,
        split=split,
        quant_algo=None if quantization is None else quantization.algo,
        kv_algo=kv,
        lora=config.lora,
        drafter=drafter,
        max_draft_len=0 if drafter is None else config.max_draft_tokens or 0,
        sampler=choose_sampler(config.tensorrt_llm_sampler, release, flow, drafter),
    )


def _check_block(kv_cache: KvCache) -> None:
    if kv_cache.num_bytes is not None and kv_cache.num_bytes < kv_cache.bytes_per_token * kv_cache.block_size:
        raise ConfigError(
            f"kv_cache_bytes is {kv_cache.num_bytes}: one block of this model takes "
            f"{kv_cache.bytes_per_token * kv_cache.block_size}"
        )


def _stored_dtype(checkpoint: Checkpoint) -> DType:
    """The 16-bit type that the checkpoint says it has; bfloat16 holds the numbers of all others."""
    text = checkpoint.config.get("text_config")
    places = [checkpoint.config, *([text] if isinstance(text, dict) else [])]
    said = {place.get(key) for place in places for key in ("dtype", "torch_dtype")}
    return DType.FLOAT16 if "float16" in said else DType.BFLOAT16
