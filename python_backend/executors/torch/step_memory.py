"""What steps take of a device's memory, found by running the largest before the KV cache takes the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.drawing import Drawing
from trierarch.python_backend.executors.following import StepRows
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
    try:
        taken = _measured(manifest, model, drawing, device)
    except ResourceError:
        raise
    except Exception:  # whom it concerns will hear of it again
        logger.exception("%s: what steps take of %s could not be found out", manifest.name, device)
        return free_memory(device)
    logger.info("%s: steps take %.0f MiB of %s", manifest.name, taken / 2**20, device)
    torch.cuda.empty_cache()
    return max(0, free_memory(device) - taken)


def _measured(manifest: EngineManifest, model: EagerModel, drawing: Drawing[torch.Tensor], device: torch.device) -> int:
    kv = KvArrays(0, manifest.architecture, manifest.kv_cache, device)  # there is always the block that pads
    graphs = graphs_of(model, kv, manifest, device)

    def compute(plan: Plan) -> StepRows[torch.Tensor]:
        return model.compute(plan, kv) if graphs is None else graphs.compute(plan)

    torch.cuda.empty_cache()
    return bytes_of_steps(
        WarmUp(manifest, model, kv, graphs),
        lambda plan: drawing.run(plan, compute),
        lambda: free_memory(device),
        torch.cuda.empty_cache,
    )


def bytes_of_steps(
    warm_up: WarmUp, run: Callable[[Plan], object], free: Callable[[], int], give_back: Callable[[], object]
) -> int:
    """What is needed for the activations of the longest prompt, or for drawing, and by all decode steps recorded at load.

    Two of them are recorded. They share what they compute in, so each further one is taken for as large as the second.
    free: bytes of the device's memory. give_back: makes what nobody uses any more `free` again.

    Raises:
        ResourceError: there is no room for the prompt.
    """
    *_, longest = warm_up.prompts()
    decode_steps = warm_up.decode_steps()
    at_first = free()
    try:
        run(longest)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"no room for a step of {longest.num_tokens} tokens: free some memory, or rebuild the engine with a smaller "
            "--max-num-tokens"
        ) from error
    passing = at_first - free()
    give_back()
    left, staying, last = free(), 0, 0
    for plan in decode_steps[:2]:
        before = left
        run(plan)
        at_end = free()
        give_back()
        left = free()
        passing = max(passing, left - at_end)
        last = before - left
        staying += last
    return passing + staying + max(0, last) * max(0, len(decode_steps) - 2)
