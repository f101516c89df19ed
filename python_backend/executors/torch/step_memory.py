"""What steps take of a device's memory, found by running the largest before the KV cache takes the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.drawing import Drawing
from trierarch.python_backend.executors.torch.device import free_memory
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.graphed_model import graphs_of
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.warm_up import WarmUp
from trierarch.python_backend.scheduling.plan import Plan

logger = logging.getLogger(__name__)


def room_for_kv(
    manifest: EngineManifest, model: EagerModel, drawing: Drawing[torch.Tensor], device: torch.device
) -> int:
    """Bytes that are free on the device, less those that steps will take where a fraction of it goes to the KV cache.

    On a CPU, and where the engine says how large the cache is, nothing is run.

    Raises:
        ResourceError: there is no room for a step.
    """
    if device.type != "cuda" or manifest.kv_cache.num_bytes is not None:
        return free_memory(device)
    kv = KvArrays(0, manifest.architecture, manifest.kv_cache, device)  # there is always the block that pads
    graphs = graphs_of(model, kv, manifest, device)
    warm_up = WarmUp(manifest, model, kv, graphs)

    def run(plan: Plan) -> object:
        return drawing.run(plan, (lambda part: model.compute(part, kv)) if graphs is None else graphs.compute)

    torch.cuda.empty_cache()
    taken = bytes_of_steps(warm_up, run, lambda: free_memory(device))
    logger.info("%s: steps take %.0f MiB of %s", manifest.name, taken / 2**20, device)
    del run, warm_up, graphs, kv
    torch.cuda.empty_cache()
    return max(0, free_memory(device) - taken)


def bytes_of_steps(warm_up: WarmUp, run: Callable[[Plan], object], free: Callable[[], int]) -> int:
    """What is no longer `free` once the longest prompt ran and all steps that will be recorded at load were.

    Two of them are. They share what they compute in, so each further one is taken for as large as the second.

    Raises:
        ResourceError: there is no room for the prompt.
    """
    *_, longest = warm_up.prompts()
    largest, *others = warm_up.decode_steps()
    at_first = free()
    try:
        run(longest)
        run(largest)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"no room for a step of {longest.num_tokens} tokens: free some memory, or rebuild the engine with a smaller "
            "--max-num-tokens"
        ) from error
    after_one = free()
    if not others:
        return at_first - after_one
    run(others[0])
    after_two = free()
    return at_first - after_two + (len(others) - 1) * max(0, after_one - after_two)
