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
    """Compare `gpu_memory` with what is certain to be there: weights, adapters, and keys and values.

    `weight_bytes` are those of the GPU that has most. What TensorRT-LLM needs for activations comes on top.

    Raises:
        ConfigError: it does not fit; the numbers are named.
    """
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
