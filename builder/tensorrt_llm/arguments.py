"""The table from our BuildConfig to the names of each release: BuildConfig, PluginConfig and LoraConfig of the engine flow, and
the keyword arguments of `LLM` of both.

Every field of ours is in it, is the builder's own business, or is refused where it was asked for: none is dropped in silence.
To add a release, say in each row since or until when its name holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trierarch.builder.config import TokenSampler
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import Flow, Lora
from trierarch.builder.tensorrt_llm.releases import RELEASES
from trierarch.builder.tensorrt_llm.sampler import SAMPLER_TYPES
from trierarch.builder.tensorrt_llm.spec import Spec
from trierarch.builder.tensorrt_llm.speculation import DRAFTS_EXTERNALLY, runs_on_host, speculative_config

_MAX_GRAPH_BATCH: Final = 128
"""Sequences for which TensorRT-LLM captures CUDA graphs unless told otherwise."""

BUILDER_FIELDS: Final = frozenset(
    {
        "model",
        "output",
        "target",
        "quantization",
        "max_perplexity_increase",
        "accuracy_text",
        "accuracy_check",
        "name",
        "draft",
        "compile",
        "overwrite",
        "tensorrt_llm_version",
        "tensorrt_llm_flow",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "gpu_architecture",
        "gpu_memory",
        "tensorrt_llm_sampler",
        "adapters",
    }
)
"""Of BuildConfig: what the builder does itself."""
EXECUTOR_FIELDS: Final = frozenset({"max_queue_size"})
"""What the executor keeps before TensorRT-LLM, by the manifest's `limits`."""
REFUSED_FIELDS: Final[Mapping[str, str]] = {
    "speculation_history_bytes": "TensorRT-LLM keeps no earlier answers by tenant",
    "draft_quantization": "drafts for TensorRT-LLM are not quantised",
    "pooling": "TensorRT-LLM tells no states",
}
"""Field -> why nothing of TensorRT-LLM does what it asks for."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One row: a field of ours as one of TensorRT-LLM's."""

    field: str | None
    """Of BuildConfig; None says what always holds."""
    name: str
    """Dots lead into nested configurations."""
    value: Callable[[Spec], Any]
    """None leaves it to TensorRT-LLM."""
    since: str = "1.0"
    """Release that has the name first."""
    until: str | None = None
    """Release that has it last."""


def _if_lora(value: Callable[[Spec, Lora], Any]) -> Callable[[Spec], Any]:
    return lambda spec: None if spec.lora is None else value(spec, spec.lora)


def _host_adapters(spec: Spec, lora: Lora) -> int:
    """The largest adapters that `adapter_host_bytes` hold; no fewer than run at once."""
    return max(lora.max_adapters, lora.host_bytes // spec.adapter_bytes)


def _speculative(spec: Spec) -> dict[str, Any] | None:
    return None if spec.drafter is None else speculative_config(spec.drafter, spec.max_draft_len, spec.release)


_COMMON: Final = (
    Argument("max_batch_size", "max_batch_size", lambda spec: spec.limits.max_batch_size),
    Argument("max_seq_len", "max_seq_len", lambda spec: spec.limits.max_seq_len),
    Argument("max_seq_len", "max_input_len", lambda spec: spec.limits.max_seq_len),
    Argument("max_num_tokens", "max_num_tokens", lambda spec: spec.limits.max_num_tokens),
)
_LLM: Final = (
    *_COMMON,
    Argument(None, "enable_chunked_prefill", lambda spec: True),
    Argument(None, "scheduler_config.capacity_scheduler_policy", lambda spec: "GUARANTEED_NO_EVICT"),
    Argument(None, "scheduler_config.context_chunking_policy", lambda spec: "FIRST_COME_FIRST_SERVED"),
    Argument(
        "enable_prefix_caching", "kv_cache_config.enable_block_reuse", lambda spec: spec.kv_cache.enable_prefix_caching
    ),
    Argument(
        "kv_cache_memory_fraction",
        "kv_cache_config.free_gpu_memory_fraction",
        lambda spec: spec.kv_cache.memory_fraction,
    ),
    Argument("kv_cache_bytes", "kv_cache_config.max_tokens", lambda spec: spec.kv_tokens),
    Argument(
        "kv_event_buffer", "kv_cache_config.event_buffer_max_size", lambda spec: spec.config.kv_event_buffer or None
    ),
    Argument("gather_logits", "gather_generation_logits", lambda spec: spec.config.gather_logits or None),
)
PYTORCH_LLM: Final = (
    *_LLM,
    Argument("dtype", "dtype", lambda spec: spec.dtype.value),
    Argument("block_size", "kv_cache_config.tokens_per_block", lambda spec: spec.kv_cache.block_size, since="1.2"),
    Argument("kv_cache_dtype", "kv_cache_config.dtype", lambda spec: None if spec.kv_algo is None else "fp8"),
    Argument(
        "max_batch_size",
        "cuda_graph_config.max_batch_size",
        lambda spec: min(spec.limits.max_batch_size, _MAX_GRAPH_BATCH),
    ),
    Argument(None, "cuda_graph_config.enable_padding", lambda spec: True),
    Argument("speculation", "speculative_config", _speculative),
    Argument("max_draft_tokens", "speculative_config", _speculative),
    Argument("speculation", "disable_overlap_scheduler", lambda spec: runs_on_host(spec.drafter) or None),
    Argument(None, "enable_trtllm_sampler", lambda spec: spec.sampler is TokenSampler.TRTLLM or None, until="1.0"),
    # Beside a drafter it is left to TensorRT-LLM, which may have one of that drafter's own.
    Argument(
        None,
        "sampler_type",
        lambda spec: None if spec.drafter else SAMPLER_TYPES[spec.sampler],
        since="1.1",
        until="1.2",
    ),
    # Guesses and grammars are not followed together by every release.
    Argument(None, "guided_decoding_backend", lambda spec: None if spec.drafter else "xgrammar"),
    Argument("max_adapters", "enable_lora", _if_lora(lambda spec, lora: True)),
    Argument("max_adapters", "lora_config.max_loras", _if_lora(lambda spec, lora: lora.max_adapters)),
    Argument("max_adapters", "lora_config.lora_target_modules", _if_lora(lambda spec, lora: spec.lora_modules)),
    Argument("max_lora_rank", "lora_config.max_lora_rank", _if_lora(lambda spec, lora: lora.max_rank)),
    Argument("adapter_host_bytes", "lora_config.max_cpu_loras", _if_lora(_host_adapters)),
)
"""`LLM` of the PyTorch flow: TorchLlmArgs."""
ENGINE_LLM: Final = (
    *_LLM,
    Argument(None, "batching_type", lambda spec: "INFLIGHT"),
    # Windows are not in the engine: layers keep as many tokens as they are told to when it is loaded.
    Argument(None, "kv_cache_config.max_attention_window", lambda spec: spec.windows),
    Argument(
        "max_adapters",
        "peft_cache_config.num_device_module_layer",
        _if_lora(lambda spec, lora: spec.lora_module_layers(lora.max_adapters)),
    ),
    Argument("adapter_host_bytes", "peft_cache_config.host_cache_size", _if_lora(lambda spec, lora: lora.host_bytes)),
)
"""`LLM` of tensorrt_llm._tensorrt_engine: TrtLlmArgs."""
ENGINE_BUILD: Final = (
    *_COMMON,
    Argument(None, "max_beam_width", lambda spec: 1),
    Argument(None, "kv_cache_type", lambda spec: "PAGED"),
    Argument(None, "plugin_config.remove_input_padding", lambda spec: True),
    Argument(None, "plugin_config.context_fmha", lambda spec: True),
    # Both reused blocks and chunks of prompts attend to keys that are in the cache already.
    Argument("enable_prefix_caching", "plugin_config.use_paged_context_fmha", lambda spec: True),
    Argument("dtype", "plugin_config.gemm_plugin", lambda spec: None if spec.quant_algo else "auto"),
    Argument("block_size", "plugin_config.tokens_per_block", lambda spec: spec.kv_cache.block_size),
    Argument("gather_logits", "gather_context_logits", lambda spec: spec.config.gather_logits or None),
    Argument(
        "speculation", "speculative_decoding_mode", lambda spec: None if spec.drafter is None else DRAFTS_EXTERNALLY
    ),
    Argument("max_draft_tokens", "max_draft_len", lambda spec: None if spec.drafter is None else spec.max_draft_len),
    Argument("max_adapters", "plugin_config.lora_plugin", _if_lora(lambda spec, lora: spec.dtype.value)),
    Argument("max_adapters", "lora_config.lora_target_modules", _if_lora(lambda spec, lora: spec.lora_modules)),
    Argument("max_lora_rank", "lora_config.max_lora_rank", _if_lora(lambda spec, lora: lora.max_rank)),
)
"""BuildConfig of the engine flow, as `trtllm-build` takes it."""
IN_CHECKPOINT: Final = frozenset({"kv_cache_dtype"})
"""Fields that the engine flow writes into the checkpoint itself."""


def llm_args(spec: Spec) -> dict[str, Any]:
    """What `LLM` is given beside the model and the parallel sizes.

    Raises:
        ConfigError: this release has no name for something that was asked for.
    """
    return _resolved(ENGINE_LLM if spec.flow is Flow.ENGINE else PYTORCH_LLM, spec)


def build_config(spec: Spec) -> dict[str, Any] | None:
    """Fields of TensorRT-LLM's BuildConfig; None in the PyTorch flow.

    Raises:
        ConfigError: as `llm_args`.
    """
    return _resolved(ENGINE_BUILD, spec) if spec.flow is Flow.ENGINE else None


def check_fields(asked: Iterable[str]) -> None:
    """Refuse what nothing of TensorRT-LLM does, before any work is done.

    Raises:
        ConfigError: such a field was asked for.
    """
    for field in sorted(asked):
        if field in REFUSED_FIELDS:
            raise ConfigError(f"{field} is given, and {REFUSED_FIELDS[field]}; leave it out")


def _resolved(rows: Iterable[Argument], spec: Spec) -> dict[str, Any]:
    """The values of `rows`, nested as their names say."""
    order = list(RELEASES)
    resolved: dict[str, Any] = {}
    for row in rows:
        value = row.value(spec)
        if value is None:
            continue
        own = order.index(spec.release.name)
        if own < order.index(row.since) or (row.until is not None and own > order.index(row.until)):
            if row.field in spec.asked:
                raise ConfigError(
                    f"{row.field} is {getattr(spec.config, row.field or '')!r}: TensorRT-LLM {spec.release.name} has no "
                    f"{row.name}, which came with {row.since}; leave it out, or build for {row.since}"
                )
            continue
        *outer, last = row.name.split(".")
        place = resolved
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return resolved
