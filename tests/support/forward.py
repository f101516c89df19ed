"""The decoder alone, fed by hand: logits of every position of one prompt, computed in chosen chunks."""

from __future__ import annotations

from collections.abc import Sequence as Chunks
from pathlib import Path

import torch

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.model import Decoder
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES, load_weights
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence

CPU = torch.device("cpu")


@torch.inference_mode()
def prompt_logits(engine: Path, prompt: list[int], chunks: Chunks[int]) -> torch.Tensor:
    """(len(prompt), vocab) float32; `chunks` are how many tokens each step computes and add up to the prompt."""
    assert sum(chunks) == len(prompt)
    manifest = EngineManifest.load(engine)
    architecture, block_size = manifest.architecture, manifest.kv_cache.block_size
    num_blocks = -(-len(prompt) // block_size)
    model = Decoder(architecture, load_weights(engine, manifest, CPU))
    kv = KvArrays(num_blocks, architecture, manifest.kv_cache, CPU)
    shape = BlockShape(block_size, architecture.num_kv_heads, kv.padding_block)
    request = Request(
        request_id="0", prompt_token_ids=tuple(prompt), sampling=SamplingParams(max_tokens=1), arrival_time=0.0
    )
    sequence = Sequence(0, request, 0, list(prompt), block_table=list(reversed(range(num_blocks))))
    windows = {layer.window for layer in architecture.layers}
    logits, start = [], 0
    for chunk in chunks:
        plan = Plan((ScheduledSequence(sequence, start, chunk),))
        batch = InputBatch.build(plan, windows, shape, TORCH_DTYPES[manifest.dtype], CPU)
        logits.append(model.logits(model.hidden(batch, kv)))
        start += chunk
    return torch.cat(logits)
