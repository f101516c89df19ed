"""OpenVINO GenAI: continuous batching with prefix caching. KV precision and inference precision are its own choice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openvino
import openvino_genai as genai

from trierarch.benchmarks.workers.protocol import KV_CACHE_BYTES, MAX_BATCH_SIZE, NUM_THREADS, Ready, TokenIds, serve


class OpenVINOWorker:
    """One ContinuousBatchingPipeline."""

    properties: ClassVar[Mapping[str, Any]] = {}
    """Of the pipeline, beside its threads."""

    def __init__(self, model: Path) -> None:
        """Load the exported `model`."""
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = KV_CACHE_BYTES >> 30
        scheduler.max_num_seqs = MAX_BATCH_SIZE
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": NUM_THREADS, **self.properties}
        self._pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties, {})

    @property
    def ready(self) -> Ready:
        """The release and the weights' format."""
        settings = {"threads": NUM_THREADS, "cache_size_gb": KV_CACHE_BYTES >> 30, **self.properties}
        return Ready(genai.__version__, settings)

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """Hand all prompts over in one call."""
        config = self.generation_config(num_output_tokens)
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = self._pipeline.generate(tensors, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]

    def generation_config(self, num_output_tokens: int) -> genai.GenerationConfig:
        """Of every prompt: greedy, deaf to end tokens."""
        config = genai.GenerationConfig()
        config.max_new_tokens = num_output_tokens
        config.ignore_eos = True
        config.do_sample = False
        return config

    def close(self) -> None:
        """Free the pipeline."""
        del self._pipeline


if __name__ == "__main__":
    serve(OpenVINOWorker)
