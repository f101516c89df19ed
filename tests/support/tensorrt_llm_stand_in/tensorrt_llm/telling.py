"""Telling: what an LLM is able to tell beside the tokens, by its flow, release, sampler and arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tensorrt_llm.recorded import RELEASE


@dataclass(frozen=True)
class Telling:
    """Of one LLM."""

    is_engine: bool
    of_prompts: bool
    """Whether logits of prompts are there for whoever asks."""
    of_outputs: bool
    has_likeliest: bool
    """Whether log-probs are told of other tokens than the drawn one."""
    reuses: bool
    num_events: int

    @classmethod
    def of(cls, flow: str, model: Path, arguments: dict[str, Any]) -> Self:
        is_engine = flow.endswith("_tensorrt_engine")
        by_trtllm = bool(arguments.get("enable_trtllm_sampler")) or arguments.get("sampler_type") == "TRTLLMSampler"
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        is_gathered = config.get("build_config", {}).get("gather_context_logits", False)
        of_outputs = bool(arguments.get("gather_generation_logits"))
        kv_cache = arguments.get("kv_cache_config")
        return cls(
            is_engine=is_engine,
            of_prompts=is_gathered if is_engine else RELEASE != "1.0",
            of_outputs=of_outputs,
            has_likeliest=of_outputs if is_engine else not by_trtllm and RELEASE != "1.0",
            reuses=kv_cache is None or kv_cache.enable_block_reuse,
            num_events=0 if kv_cache is None else kv_cache.event_buffer_max_size,
        )
