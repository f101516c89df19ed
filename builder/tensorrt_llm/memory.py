"""Whether an engine fits the GPUs that it is built for, as far as its files and limits tell."""

from __future__ import annotations

from trierarch.builder.errors import ConfigError
from trierarch.builder.tensorrt_llm.spec import Spec


def kv_bytes_per_token(spec: Spec) -> int:
    """What a token holds on each GPU; heads that are fewer than the GPUs are on several."""
    places, stages = spec.split.tensor_parallel_size, spec.split.pipeline_parallel_size
    heads = max(1, spec.architecture.num_kv_heads // places)
    row = spec.architecture.head_dim * spec.kv_cache.dtype.num_bytes
    return 2 * (spec.architecture.num_layers // stages) * heads * row


def check_memory(spec: Spec, weight_bytes: int) -> None:
    """Whether the budgets hold what the limits promise, and `gpu_memory` what is certain to be there.

    That is weights, adapters, and keys and values. `weight_bytes` are those of the GPU that has most. What TensorRT-LLM
    needs for activations comes on top.

    Raises:
        ConfigError: it does not fit; the numbers are named.
    """
    _check_sequence(spec)
    _check_adapter(spec)
    memory = spec.config.gpu_memory
    if memory is None:
        return
    adapter_bytes = 0 if spec.lora is None else spec.adapter_bytes * spec.lora.max_adapters // spec.split.world_size
    left = memory - weight_bytes - adapter_bytes
    tokens = spec.kv_tokens if spec.kv_tokens is not None else spec.limits.max_seq_len
    wanted = tokens * kv_bytes_per_token(spec)
    room = left if spec.kv_tokens is not None else int(left * spec.kv_cache.memory_fraction)
    if wanted > room:
        what = "kv_cache_bytes" if spec.kv_tokens is not None else "one sequence of max_seq_len"
        adapters = f", {adapter_bytes} adapters" if adapter_bytes else ""
        raise ConfigError(
            f"gpu_memory is {memory}: weights take {weight_bytes} of it{adapters}, and keys and values of {what} "
            f"({tokens} tokens) {wanted}, for which {max(0, room)} are left; take more GPUs (--tensor-parallel-size), smaller "
            "weights (--quantization), a smaller --max-seq-len or --kv-cache-bytes, or fewer --max-adapters"
        )


def _check_sequence(spec: Spec) -> None:
    """TensorRT-LLM starts nothing that might not end in the blocks there are: such a request would wait for ever."""
    longest = spec.limits.max_seq_len
    if spec.kv_tokens is not None and spec.kv_tokens < longest:
        raise ConfigError(
            f"kv_cache_bytes hold {spec.kv_tokens} tokens of {spec.kv_cache.bytes_per_token} bytes, and one sequence has up to "
            f"{longest}, max_seq_len; take {longest * spec.kv_cache.bytes_per_token}, or a smaller --max-seq-len"
        )


def _check_adapter(spec: Spec) -> None:
    if spec.lora is not None and "adapter_host_bytes" in spec.asked and spec.lora.host_bytes < spec.adapter_bytes:
        raise ConfigError(
            f"adapter_host_bytes is {spec.lora.host_bytes}: one adapter of max_lora_rank {spec.lora.max_rank} takes "
            f"{spec.adapter_bytes}; take at least as much, or a smaller --max-lora-rank"
        )
