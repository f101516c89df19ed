"""Teacher forcing: the logits of given tokens through an engine as it will serve them, without a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch

from trierarch.builder.manifest import EngineManifest
from trierarch.builder.verify import verify
from trierarch.python_backend.executors.cpu import kv_arrays as cpu_kv_arrays
from trierarch.python_backend.executors.cpu.model import CompiledModel
from trierarch.python_backend.executors.torch.device import default_device, prepare_cpu
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.weights import load_weights
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence as TokenSequence

_LOGITS_ROWS: Final = 64
"""Logits worked out at a time: those of a whole window would fill memory."""

Compute = Callable[[Plan], torch.Tensor]
"""A step of one sequence → (num_tokens, hidden)."""
Logits = Callable[[torch.Tensor], torch.Tensor]
"""(n, hidden) → (n, vocab) float32."""


@torch.inference_mode()
def teacher_forced_logits(
    engine: Path, windows: Sequence[Sequence[int]], device: torch.device | None = None
) -> Iterator[torch.Tensor]:
    """Logits that predict each window's tokens from the second on; a window sees nothing of those before it.

    Yields (n, vocab) float32, n at most 64, windows in order. `device` None takes CUDA where there is one.
    The engine is loaded at the first and let go after the last; it holds keys and values of one window.

    Raises:
        EngineError: the engine is corrupt, or foreign to this version or machine.
        ResourceError: there is no room.
    """
    manifest = verify(engine)
    device = default_device(manifest.requires.device) if device is None else device
    num_blocks = -(-max(map(len, windows)) // manifest.kv_cache.block_size)
    is_compiled = device.type == "cpu" and manifest.kernels is not None
    compute, logits = (
        open_compiled(engine, manifest, num_blocks) if is_compiled else open_eager(engine, manifest, num_blocks, device)
    )
    for index, window in enumerate(windows):
        plan = _plan(index, window, manifest.kv_cache.block_size)
        hidden = compute(plan)[:-1]  # the last row would predict what no window holds
        for first in range(0, len(hidden), _LOGITS_ROWS):
            yield logits(hidden[first : first + _LOGITS_ROWS])


def open_eager(engine: Path, manifest: EngineManifest, num_blocks: int, device: torch.device) -> tuple[Compute, Logits]:
    """An engine by torch's own operators, with keys and values of `num_blocks` blocks."""
    if device.type == "cpu":
        prepare_cpu()
    model = EagerModel(manifest, load_weights(engine, manifest, device), device)
    kv = KvArrays(num_blocks, manifest.architecture, manifest.kv_cache, device)
    return lambda plan: model.compute(plan, kv).hidden, model.logits


def open_compiled(engine: Path, manifest: EngineManifest, num_blocks: int) -> tuple[Compute, Logits]:
    """The same by the engine's kernels, which it must have."""
    model = CompiledModel(engine, manifest)
    kv = cpu_kv_arrays.KvArrays(num_blocks, manifest.architecture, manifest.kv_cache)

    def compute(plan: Plan) -> torch.Tensor:
        return torch.from_numpy(model.compute(plan, kv).hidden)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model.logits(hidden.numpy()))

    return compute, logits


def _plan(index: int, window: Sequence[int], block_size: int) -> Plan:
    """One step that computes all of one sequence, in the first blocks."""
    token_ids = list(window)
    request = Request(
        request_id=str(index),
        prompt_token_ids=tuple(token_ids),
        sampling=SamplingParams(max_tokens=1),
        arrival_time=0.0,
    )
    num_blocks = -(-len(token_ids) // block_size)
    sequence = TokenSequence(index, request, 0, token_ids, block_table=list(range(num_blocks)))
    return Plan((ScheduledSequence(sequence, start=0, num_tokens=len(token_ids)),))
