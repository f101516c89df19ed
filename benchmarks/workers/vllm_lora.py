"""vLLM with its LoRA, as many adapters at once as there are."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar

from vllm.lora.request import LoRARequest

from trierarch.benchmarks.workers.protocol import Steering, adapter_directories, serve
from trierarch.benchmarks.workers.vllm import VLLMWorker

MAX_LORA_RANK = 8
"""Of the adapters that rivals are given."""


class VLLMLoraWorker(VLLMWorker):
    """Without adapters asked for it is the same process: its users cannot switch LoRA off for a call either."""

    options: ClassVar[Mapping[str, Any]] = {
        "enable_lora": True,
        "max_loras": len(adapter_directories()),
        "max_lora_rank": MAX_LORA_RANK,
    }

    def __init__(self, model: Path) -> None:
        """Load and compile the checkpoint `model`; adapters are loaded when they are asked for."""
        super().__init__(model)
        paths = adapter_directories().items()
        self._adapters = {name: LoRARequest(name, index + 1, str(path)) for index, (name, path) in enumerate(paths)}
        self._names: tuple[str, ...] = ()

    def steer(self, steering: Steering) -> None:
        """See Steered.steer."""
        self._names = steering.adapters

    def asked(self, num_prompts: int) -> Mapping[str, Any]:
        """Each prompt's adapter."""
        adapters = [self._adapters[name] for name in islice(cycle(self._names), num_prompts)] if self._names else []
        return {"lora_request": adapters} if adapters else {}


if __name__ == "__main__":
    serve(VLLMLoraWorker)
