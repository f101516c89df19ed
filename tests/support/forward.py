"""The decoder alone, fed by hand: logits of every position of one prompt, computed in chosen chunks."""

from __future__ import annotations

from collections.abc import Sequence as Chunks
from pathlib import Path

import torch

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.torch.teacher_forcing import open_compiled, open_eager
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence

CPU = torch.device("cpu")


@torch.inference_mode()
def prompt_logits(engine: Path, prompt: list[int], chunks: Chunks[int], is_compiled: bool = False) -> torch.Tensor:
    """(len(prompt), vocab) float32; `chunks` are how many tokens each step computes and add up to the prompt.

    `is_compiled` runs the engine's kernels, which it then must have; else torch's own operators compute.
    """
    assert sum(chunks) == len(prompt)
    manifest = EngineManifest.load(engine)
    num_blocks = -(-len(prompt) // manifest.kv_cache.block_size)
    compute, to_logits = (
        open_compiled(engine, manifest, num_blocks) if is_compiled else open_eager(engine, manifest, num_blocks, CPU)
    )
    request = Request(
        request_id="0", prompt_token_ids=tuple(prompt), sampling=SamplingParams(max_tokens=1), arrival_time=0.0
    )
    sequence = Sequence(0, request, 0, list(prompt), block_table=list(reversed(range(num_blocks))))
    logits, start = [], 0
    for chunk in chunks:
        logits.append(to_logits(compute(Plan((ScheduledSequence(sequence, start, chunk),)))))
        start += chunk
    return torch.cat(logits)
