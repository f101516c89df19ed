"""An engine's manifest, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from trierarch.builder.adapter import ADAPTER_SUFFIX
from trierarch.builder.manifest import (
    ADAPTERS_NAME,
    GROUP_SIZE,
    WEIGHTS_NAME,
    Accuracy,
    Architecture,
    DrafterKind,
    EngineManifest,
    Flow,
    Head,
    Parallel,
    Pooling,
    Quantization,
    Speculation,
    TensorRTLLM,
    WeightType,
)
from trierarch.orchestrator.sizes import format_size


def summary_rows(manifest: EngineManifest, draft: EngineManifest | None = None) -> Iterator[tuple[str, str]]:
    """(what, value) for each line of the summary; `draft` is the manifest of its draft, where it has one."""
    architecture, limits = manifest.architecture, manifest.limits
    quantization = f" ({manifest.source_quantization})" if manifest.source_quantization else ""
    weights = sum(file.num_bytes for file in manifest.files.values())
    source = "" if manifest.source == manifest.name else f", from {manifest.source}"
    yield "engine", f"{manifest.name}{source}{quantization}"
    yield "runs on", f"{manifest.target.value}, {manifest.dtype.value}" + _device(manifest)
    if manifest.tensorrt_llm is not None:
        yield from _tensorrt_llm(manifest.tensorrt_llm)
    if manifest.parallel is not None:
        yield from _split(manifest.parallel)
    if manifest.quantization is not None:
        yield "weights", _quantization(manifest.quantization)
    if manifest.is_quantized:
        yield from _accuracy(manifest.accuracy)
    yield "architecture", _shape(architecture)
    yield "attention", _attention(architecture)
    yield "vocabulary", f"{architecture.vocab_size:,} tokens"
    yield "size", f"{format_size(weights)} in {len(manifest.files)} files"
    yield "KV cache", _kv_cache(manifest)
    yield "adapters", _adapters(manifest)
    yield "speculation", _speculation(manifest.speculation)
    if manifest.pooling is not None:
        yield "embeddings", f"of the {'last token' if manifest.pooling is Pooling.LAST else 'mean of all tokens'}"
    if draft is not None:
        yield "draft", _draft(draft)
        yield "its KV cache", _kv_cache(draft)
    yield (
        "limits",
        f"{limits.max_seq_len:,} tokens a sequence, {limits.max_batch_size} sequences and "
        + f"{limits.max_num_tokens:,} tokens a step, {limits.max_queue_size} requests waiting",
    )


def is_uncompiled(manifest: EngineManifest) -> bool:
    """Whether it is a checkpoint that TensorRT-LLM still has to compile."""
    record = manifest.tensorrt_llm
    return record is not None and record.flow is Flow.ENGINE and record.compiled_by is None


def summary_table(manifest: EngineManifest, *more: tuple[str, str], draft: EngineManifest | None = None) -> Table:
    """The summary, with `more` lines below; `draft` as in `summary_rows`."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column()
    for name, value in (*summary_rows(manifest, draft), *more):
        table.add_row(name, value)
    return table


def _tensorrt_llm(record: TensorRTLLM) -> Iterator[tuple[str, str]]:
    yield "TensorRT-LLM", f"{record.version}, {record.flow.value} flow"
    if record.flow is Flow.ENGINE:
        by = record.compiled_by
        yield (
            "compiled",
            "not yet: trierarch compile, on the GPU machine"
            if by is None
            else f"for {by.gpu_architecture} by TensorRT-LLM {by.tensorrt_llm}, TensorRT {by.tensorrt}, CUDA {by.cuda}",
        )
    yield from _split(record)
    if record.quant_algo is not None:
        yield "weights", record.quant_algo


def _split(split: TensorRTLLM | Parallel) -> Iterator[tuple[str, str]]:
    tensor, pipeline = split.tensor_parallel_size, split.pipeline_parallel_size
    if tensor * pipeline > 1:
        yield "split over", f"{tensor * pipeline} GPUs: each layer over {tensor}, the layers over {pipeline}"


def _quantization(quantization: Quantization) -> str:
    asked = quantization.weights
    name = "as in the checkpoint" if asked is WeightType.SOURCE else asked.value
    block = quantization.fp8_block
    fp8_scales = "a scale a row" if block is None else f"a scale for blocks of {block[0]} × {block[1]}"
    scales = fp8_scales if quantization.num_fp8 else f"in groups of {GROUP_SIZE}"
    counts = {
        "int8": quantization.num_int8,
        "int4": quantization.num_int4,
        "fp8": quantization.num_fp8,
        "unquantised": quantization.num_unquantized,
    }
    stored = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{name}, {scales} ({sum(counts.values())} matrices: {stored})"


def _accuracy(accuracy: Accuracy | None) -> Iterator[tuple[str, str]]:
    if accuracy is None:
        yield "accuracy", "not measured"
        return
    increase = f"unquantised {accuracy.reference_perplexity:.2f}: {accuracy.perplexity_increase:+.2%}"
    yield "perplexity", f"{accuracy.perplexity:.2f}, {increase} ({accuracy.num_tokens:,} tokens of {accuracy.text})"
    divergence = f"KL from the unquantised {accuracy.mean_kl:.2g} nats"
    yield "agreement", f"the same likeliest token at {accuracy.greedy_agreement:.1%} of them; {divergence}"


def _device(manifest: EngineManifest) -> str:
    requires = manifest.requires
    device = "a GPU with TensorRT-LLM" if manifest.tensorrt_llm is not None else "any"
    device = device if requires.device == "any" else requires.device
    needs = [*requires.cpu_flags, *([] if device == "any" else [device])]
    return f"; needs {', '.join(needs)}" if needs else "; any machine"


def _shape(architecture: Architecture) -> str:
    moe = architecture.moe
    width = (
        f"{moe.num_experts} experts of {moe.intermediate_size:,}, {moe.experts_per_token} a token"
        if moe
        else f"{architecture.intermediate_size:,} MLP"
    )
    return f"{architecture.family}: {architecture.num_layers} layers × {architecture.hidden_size:,} hidden, {width}"


def _attention(architecture: Architecture) -> str:
    windowed = sum(layer.window is not None for layer in architecture.layers)
    window = f"; {windowed} layers with a window" if windowed else ""
    return f"{architecture.num_heads} heads of {architecture.head_dim}, {architecture.num_kv_heads} for keys and values{window}"


def _kv_cache(manifest: EngineManifest) -> str:
    kv_cache = manifest.kv_cache
    if kv_cache.num_bytes is None:
        capacity = f"{kv_cache.memory_fraction:.0%} of the memory free at load"
    else:
        capacity = f"{format_size(kv_cache.num_bytes)} for {kv_cache.num_bytes // kv_cache.bytes_per_token:,} tokens"
    token = f"{format_size(kv_cache.bytes_per_token)} a token ({kv_cache.dtype.value})"
    return f"{token}, blocks of {kv_cache.block_size}, {capacity}"


def _adapters(manifest: EngineManifest) -> str:
    lora = manifest.lora
    if lora is None:
        return "none"
    names = [
        path.removeprefix(f"{ADAPTERS_NAME}/").removesuffix(ADAPTER_SUFFIX)
        for path in sorted(manifest.files)
        if path.startswith(f"{ADAPTERS_NAME}/")
    ]
    brought = f"; brings {', '.join(names)}" if names else ""
    return f"LoRA of rank {lora.max_rank} at most, {lora.max_adapters} at once{brought}"


def _speculation(speculation: Speculation | None) -> str:
    if speculation is None:
        return "none"
    drafters = ", ".join(kind.value for kind in speculation.drafters)
    has_history = DrafterKind.SUFFIX in speculation.drafters
    history = f"; {format_size(speculation.history_bytes)} of earlier answers" if has_history else ""
    return f"{drafters}: up to {speculation.max_draft_tokens} tokens ahead{history}"


def _draft(draft: EngineManifest) -> str:
    stored = draft.files.get(WEIGHTS_NAME)
    own = draft.files.values() if stored is None else (stored,)
    weights = format_size(sum(file.num_bytes for file in own))
    kind = (
        draft.dtype.value if draft.quantization is None else f"{draft.quantization.weights.value}, {draft.dtype.value}"
    )
    return f"{draft.name}: {weights} of weights ({kind}); {_shape(draft.architecture)}{_head(draft.head)}"


def _head(head: Head | None) -> str:
    if head is None:
        return ""
    *first, last = map(str, head.taps)
    counts = f"{', '.join(first)} and {last}" if first else last
    return f"; a head on the hidden states after {counts} layers"
