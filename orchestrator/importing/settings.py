"""What becomes of each setting of TensorRT-LLM's model repositories: one table, and the few that take work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.importing.config_file import ConfigFile
from trierarch.orchestrator.importing.entry import Entry, Fate
from trierarch.orchestrator.sizes import format_size
from trierarch.python_backend.beams.params import MAX_BEAM_WIDTH


@dataclass(slots=True)
class Settings:
    """What is known of the repository to be made."""

    build: dict[str, Any] = field(default_factory=dict)
    """Fields of BuildConfig."""
    compose: dict[str, Any] = field(default_factory=dict)
    """Fields of ComposeOptions."""
    kv_tokens: int | None = None
    """Tokens that the KV cache holds; bytes, once the model is known."""
    tokenizer: str | None = None
    engine: str | None = None
    """Where TensorRT-LLM's own engine lies."""


_Take = Callable[[Settings, str], str]
"""Carries a value over; says into what. Raises ValueError for one that cannot be read."""


def _flag(value: str) -> bool:
    """As TensorRT-LLM's backend reads it."""
    return value.lower() in ("1", "true")


def _count(value: str) -> int:
    number = int(value)
    if number < 1:
        raise ValueError(f"{number} is below 1")
    return number


def _kv_tokens(settings: Settings, value: str) -> str:
    settings.kv_tokens = _count(value)
    return "--kv-cache-bytes, as many as that many tokens take"


def _kv_fraction(settings: Settings, value: str) -> str:
    share = float(value)
    if not 0 < share <= 1:
        raise ValueError(f"{share} is no share of 1")
    settings.build["kv_cache_memory_fraction"] = min(share, 0.95)
    return "of the memory that is free when the engine is loaded" + (", at most 0.95" if share > 0.95 else "")


def _reuse(settings: Settings, value: str) -> str:
    settings.build["enable_prefix_caching"] = _flag(value)
    return "prefix caching"


def _rank(settings: Settings, value: str) -> str:
    settings.build["max_lora_rank"] = _count(value)
    return "--max-lora-rank"


def _host_bytes(settings: Settings, value: str) -> str:
    settings.build["adapter_host_bytes"] = _count(value)
    return f"--adapter-host-bytes {format_size(int(value))}"


def _kv_host_bytes(settings: Settings, value: str) -> str:
    settings.compose["kv_host_bytes"] = _count(value)
    return f"compose --kv-host-bytes {format_size(int(value))}"


def _exclude(settings: Settings, value: str) -> str:
    settings.compose["exclude_input_in_output"] = _flag(value)
    return "compose --exclude-input" if _flag(value) else "the default"


def _accumulate(settings: Settings, value: str) -> str:
    settings.compose["accumulate_tokens"] = _flag(value)
    return "compose --accumulate-tokens" if _flag(value) else "the default"


def _engine(settings: Settings, value: str) -> str:
    settings.engine = value
    return "its limits, where its config.json is here; the model itself is built anew from its checkpoint"


def _tokenizer(settings: Settings, value: str) -> str:
    settings.tokenizer = value
    return "the engine has its own; taken for the model, where a checkpoint lies there"


_CARRIED: Final[Mapping[str, _Take]] = {
    "max_tokens_in_paged_kv_cache": _kv_tokens,
    "kv_cache_free_gpu_mem_fraction": _kv_fraction,
    "enable_kv_cache_reuse": _reuse,
    "lora_cache_max_adapter_size": _rank,
    "lora_cache_host_memory_bytes": _host_bytes,
    "kv_cache_host_memory_bytes": _kv_host_bytes,
    "exclude_input_in_output": _exclude,
    "accumulate_tokens": _accumulate,
    "gpt_model_path": _engine,
    "engine_dir": _engine,
    "tokenizer_dir": _tokenizer,
}
_GPUS: Final = "an engine runs on one device"
_FIXED: Final = "the kernels are fixed when the engine is built"
_NOT_NEEDED: Final[Mapping[str, str]] = {
    "FORCE_CPU_ONLY_INPUT_TENSORS": "inputs are read on the CPU",
    "gpt_model_type": "every request is batched in flight",
    "batch_scheduler_policy": "sequences are preempted and recomputed when the cache is full; the most urgent always moves",
    "enable_chunked_context": "prompts are always computed in chunks under a budget of tokens",
    "kv_cache_onboard_blocks": "blocks are brought back to the device before they are read",
    "enable_trt_overlap": "there is nothing to overlap",
    "executor_worker_path": "the executor lives in the model's own process",
    "iter_stats_max_iterations": "statistics are metrics",
    "request_stats_max_iterations": "statistics are metrics",
    "lora_cache_optimal_adapter_size": "adapters of any rank share slots; see --max-adapters",
    "lora_cache_gpu_memory_fraction": "slots are fixed when the engine is built; see --max-adapters",
    "xgrammar_tokenizer_info_path": "the engine has its tokenizer",
    "gpu_weights_percent": "weights are mapped",
    "enable_context_fmha_fp32_acc": _FIXED,
    "multi_block_mode": _FIXED,
    "cuda_graph_mode": _FIXED,
    "cuda_graph_cache_size": _FIXED,
    "recv_poll_period_ms": "there is no orchestrator process",
    "guided_decoding_backend": "every engine takes guides",
}
_NONE: Final[Mapping[str, str]] = {
    "encoder_model_path": "decoders alone are served",
    "cross_kv_cache_fraction": "decoders alone are served",
    "max_attention_window_size": "windows are the checkpoint's; a shorter sequence is --max-seq-len",
    "sink_token_length": "no sink tokens are kept",
    "normalize_log_probs": "cum_log_probs is a sum; divide it by sequence_length",
    "gpu_device_ids": _GPUS,
    "participant_ids": _GPUS,
    "num_nodes": _GPUS,
    "lora_prefetch_dir": "register PEFT's originals with trierarch adapters pack, or let clients send these files",
    "lookahead_window_size": "prompt_lookup and suffix guess in its place, and are on by themselves",
    "lookahead_ngram_size": "prompt_lookup and suffix guess in its place, and are on by themselves",
    "lookahead_verification_set_size": "prompt_lookup and suffix guess in its place, and are on by themselves",
    "medusa_choices": "Medusa heads are not served; EAGLE-3 ones are: --speculation eagle3 --draft HEAD",
    "eagle_choices": "drafts are chains, not trees: --speculation eagle3 --draft HEAD",
    "speculative_decoding_fast_logits": "drafts are accepted where the model itself draws the same token",
    "tensorrt_llm_draft_model_name": "the engine brings its draft along: --draft SOURCE",
    "multimodal_encoders_name": "text alone is served",
    "multimodal_model_path": "text alone is served",
    "max_num_images": "text alone is served",
    "cancellation_check_period_ms": "100 here; the composed tensorrt_llm/config.pbtxt takes it under the same name",
    "stats_check_period_ms": "100 here; the composed tensorrt_llm/config.pbtxt takes it under the same name",
    "add_special_tokens": "true here; the composed preprocessing/config.pbtxt takes it under the same name",
    "skip_special_tokens": "true here; the composed postprocessing/config.pbtxt takes it under the same name",
}
_BY_THE_REQUEST: Final = ("top_k", "top_p", "top_k_top_p", "beam_search", "auto")


def _decoding_mode(value: str) -> tuple[Fate, str]:
    if value in _BY_THE_REQUEST:
        return Fate.NOT_NEEDED, "each request says how it decodes"
    if value == "lookahead":
        return Fate.NOT_NEEDED, "prompt_lookup and suffix guess in its place, and are on by themselves"
    return Fate.NONE, "guess by a head of EAGLE-3 (--speculation eagle3 --draft HEAD), or by what needs none"


def _beam_width(value: str) -> tuple[Fate, str]:
    if int(value) <= MAX_BEAM_WIDTH:
        return Fate.NOT_NEEDED, f"any request may ask for up to {MAX_BEAM_WIDTH} beams"
    return Fate.NONE, f"a request has {MAX_BEAM_WIDTH} beams at most"


def _target_model(value: str) -> tuple[Fate, str]:
    if value == "tensorrt_llm":
        return Fate.NOT_NEEDED, "the default"
    return Fate.NONE, "the model is called tensorrt_llm; clients name it so"


_JUDGED: Final[Mapping[str, Callable[[str], tuple[Fate, str]]]] = {
    "max_beam_width": _beam_width,
    "decoding_mode": _decoding_mode,
    "tensorrt_llm_model_name": _target_model,
}


def take_parameter(settings: Settings, model: str, name: str, value: str) -> Entry:
    """Carry a parameter over into `settings` where there is a place for it.

    Raises:
        ConfigError: its value is not what TensorRT-LLM's backend would read.
    """
    try:
        if name in _CARRIED:
            why = _CARRIED[name](settings, value)
            fate = Fate.NOT_NEEDED if name == "tokenizer_dir" else Fate.CARRIED
        elif name in _JUDGED:
            fate, why = _JUDGED[name](value)
        elif name in _NOT_NEEDED:
            fate, why = Fate.NOT_NEEDED, _NOT_NEEDED[name]
        else:
            fate, why = Fate.NONE, _NONE.get(name, "it is no setting of TensorRT-LLM's backend that is known here")
    except ValueError as error:
        raise ConfigError(f"{model}: parameter {name} is {value!r}: {error}") from None
    return Entry(model, name, value, fate, why)


def take_triton(settings: Settings, config: ConfigFile) -> list[Entry]:
    """What a model's configuration says in Triton's own words; it counts for `tensorrt_llm` alone."""
    message = config.message
    entries = []
    if config.model == "tensorrt_llm":
        settings.compose["decoupled"] = bool(message.model_transaction_policy.decoupled)
        word = "the default" if settings.compose["decoupled"] else "compose --unary"
        entries.append(Entry(config.model, "decoupled", str(settings.compose["decoupled"]).lower(), Fate.CARRIED, word))
        if message.max_batch_size > 0:
            settings.build["max_batch_size"] = message.max_batch_size
            entries.append(
                Entry(
                    config.model, "max_batch_size", str(message.max_batch_size), Fate.CARRIED, "sequences in one step"
                )
            )
        if queue := message.dynamic_batching.default_queue_policy.max_queue_size:
            settings.build["max_queue_size"] = queue
            entries.append(Entry(config.model, "max_queue_size", str(queue), Fate.CARRIED, "--max-queue-size"))
    if delay := message.dynamic_batching.max_queue_delay_microseconds:
        why = "requests join the batch at its next step"
        entries.append(Entry(config.model, "max_queue_delay_microseconds", str(delay), Fate.NOT_NEEDED, why))
    count = max((group.count for group in message.instance_group), default=1)
    if count > 1:
        why = "one instance serves any number of requests"
        entries.append(Entry(config.model, "instance_group.count", str(count), Fate.NOT_NEEDED, why))
    return entries
