"""Which device each rank computes on."""

from __future__ import annotations

import logging

import torch

from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.torch.device import default_device

logger = logging.getLogger(__name__)


def rank_devices(manifest: EngineManifest, num_ranks: int) -> list[torch.device]:
    """A GPU for each, in order; the CPU for all where there is none or the engine requires it.

    Raises:
        ResourceError: there are GPUs, but too few.
    """
    if default_device(manifest.requires.device).type == "cpu":
        logger.warning(
            "%s is split over %d ranks, and no GPU is to be used: they share this CPU, where torch computes eagerly, several "
            "times slower than compiled kernels; for a CPU, build without --tensor-parallel-size and --pipeline-parallel-size",
            manifest.name,
            num_ranks,
        )
        return [torch.device("cpu")] * num_ranks
    found = torch.cuda.device_count()
    if found < num_ranks:
        assert manifest.parallel is not None
        tensor, pipeline = manifest.parallel.tensor_parallel_size, manifest.parallel.pipeline_parallel_size
        raise ResourceError(
            f"engine {manifest.name!r} is split over {num_ranks} GPUs (tensor_parallel_size {tensor} × pipeline_parallel_size "
            f"{pipeline}), and {found} can be seen here: give it {num_ranks}, or build it with a smaller --tensor-parallel-size"
        )
    return [torch.device("cuda", index) for index in range(num_ranks)]
