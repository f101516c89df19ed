"""BuildConfig: what was asked of a build. Defaults that an engine also records are taken from the EngineManifest."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from trierarch.builder.adapter import NAME_PATTERN
from trierarch.builder.manifest import (
    DrafterKind,
    DType,
    Flow,
    Frozen,
    KvCache,
    KvType,
    Limits,
    Lora,
    Pooling,
    PositiveInt,
    Target,
    TensorRTLLM,
    WeightType,
)

DEFAULT_MAX_SEQ_LEN: Final = 8192
"""A window longer than this is asked for, since the scheduler promises that any one sequence may fill it."""

DEFAULT_DRAFTERS: Final = (DrafterKind.PROMPT_LOOKUP, DrafterKind.SUFFIX)
"""Guessing never changes an answer, these need no weights, and the executor learns how far a guess is worth it."""


class TokenSampler(StrEnum):
    """Who draws tokens in the PyTorch flow of TensorRT-LLM; TensorRT engines have one of their own."""

    TRTLLM = "trtllm"
    """TRTLLMSampler, in C++: penalties, seeds and min_p in every release that has it, 1.0 to 1.2. It takes no guesses."""
    TORCH = "torch"
    """TorchSampler."""


def _default(model: type[Frozen], field: str) -> Any:
    return model.model_fields[field].default


class BuildConfig(Frozen):
    """One build: a checkpoint, where its engine goes, and the limits that the engine is built for."""

    model: str = Field(min_length=1)
    """SOURCE: a Hugging Face directory, a GGUF file, a hub id (`org/name`) or `demo`."""
    output: Path
    target: Target = Target.TORCH
    dtype: DType | None = None
    """Of weights and activations; None takes what this machine is fast at (`machine.default_dtype`)."""
    quantization: WeightType | None = None
    """Of weights; None leaves them in `dtype`, but keeps what is FP8 in the checkpoint where this machine multiplies it."""
    max_perplexity_increase: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.02
    """A build whose quantization raises perplexity by more than this share fails."""
    accuracy_text: Path | None = None
    """UTF-8 text that quantization is measured on; None takes the bundled one."""
    accuracy_check: bool = True
    """Measure what quantization costs, where it is asked for."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)
    """The engine's name; None takes the checkpoint's."""
    max_batch_size: PositiveInt = _default(Limits, "max_batch_size")
    max_seq_len: PositiveInt | None = None
    """None takes the checkpoint's window, but no more than DEFAULT_MAX_SEQ_LEN."""
    max_num_tokens: PositiveInt = _default(Limits, "max_num_tokens")
    max_queue_size: PositiveInt = _default(Limits, "max_queue_size")
    kv_cache_dtype: KvType | None = None
    """Of keys and values; None takes the engine's dtype."""
    kv_cache_bytes: PositiveInt | None = None
    """For the engine and its draft together, which share it so that both hold the same number of tokens."""
    kv_cache_memory_fraction: Annotated[float, Field(gt=0, le=0.95)] = _default(KvCache, "memory_fraction")
    """Likewise shared."""
    block_size: PositiveInt = _default(KvCache, "block_size")
    enable_prefix_caching: bool = _default(KvCache, "enable_prefix_caching")
    speculation: tuple[DrafterKind, ...] | None = None
    """Who may guess tokens ahead; an empty one never guesses. None takes DEFAULT_DRAFTERS, and `draft` where given."""
    max_draft_tokens: PositiveInt | None = None
    """None takes Speculation's default, or as many as the limits allow."""
    speculation_history_bytes: Annotated[int, Field(ge=0)] | None = None
    """None takes Speculation's default."""
    pooling: Pooling | None = None
    """What an embedding is made of; None takes what a sentence-transformers checkpoint says, else there are none."""
    draft: str | None = Field(default=None, min_length=1)
    """Of DRAFT_MODEL: a SOURCE as `model` is, the directory of an engine, or `int8` or `int4`, which is `model` itself
    so quantised. Of EAGLE3: a head's checkpoint, a directory or a hub id. MTP layers are in `model`."""
    draft_quantization: WeightType | None = None
    """Of the weights of a `draft` that is a checkpoint."""
    max_adapters: Annotated[int, Field(ge=0)] = _default(Lora, "max_adapters")
    """Different LoRA adapters in one step; 0 builds an engine that takes none."""
    max_lora_rank: PositiveInt = _default(Lora, "max_rank")
    adapter_host_bytes: PositiveInt = _default(Lora, "host_bytes")
    adapters: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Path] = Field(default_factory=dict)
    """Name -> PEFT directory or packed file of adapters that the engine brings along."""
    compile: bool = True
    """Compile kernels for this machine's CPU, where there is a compiler; otherwise the engine runs eagerly anywhere."""
    overwrite: bool = False
    """Replace an engine that is already at `output`; anything else there is never touched."""
    tensorrt_llm_version: str | None = None
    """Of Target.TENSORRT_LLM, as all below but the parallel sizes: the release to build for; None takes the installed one,
    else the newest known."""
    tensorrt_llm_flow: Flow | None = None
    """None takes the engine flow where the release has it."""
    tensor_parallel_size: PositiveInt = _default(TensorRTLLM, "tensor_parallel_size")
    pipeline_parallel_size: PositiveInt = _default(TensorRTLLM, "pipeline_parallel_size")
    gpu_architecture: Annotated[str, Field(pattern=r"^sm_[0-9]{2,3}$")] | None = None
    """Of the GPUs that will run the engine, such as sm_90; None takes this machine's, and checks nothing where it has none."""
    gpu_memory: PositiveInt | None = None
    """Bytes of each of them; None checks nothing."""
    tensorrt_llm_sampler: TokenSampler | None = None
    """None takes the one that knows more of sampling."""
    gather_logits: bool = False
    """Keep logits, so that requests may ask for them, and for log-probs that only they tell."""
    kv_event_buffer: Annotated[int, Field(ge=0)] = 0
    """Events of the KV cache that TensorRT-LLM holds until they are read; 0 tells of none."""

    def limits(self, max_seq_len: int) -> Limits:
        """Of an engine whose sequences have at most `max_seq_len` tokens."""
        return Limits(
            max_batch_size=self.max_batch_size,
            max_seq_len=max_seq_len,
            max_num_tokens=self.max_num_tokens,
            max_queue_size=self.max_queue_size,
        )

    @property
    def lora(self) -> Lora | None:
        """None builds an engine that takes no adapters."""
        if self.max_adapters == 0:
            return None
        return Lora(max_rank=self.max_lora_rank, max_adapters=self.max_adapters, host_bytes=self.adapter_host_bytes)

    @property
    def measures_accuracy(self) -> bool:
        """Whether there is a cost of quantization to measure, and that is wanted."""
        is_kv_quantized = self.kv_cache_dtype is not None and self.kv_cache_dtype.is_quantized
        return (self.quantization is not None or is_kv_quantized) and self.accuracy_check
