"""PEFT on transformers: rows of one batch with adapters of their own, by its `adapter_names`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import peft

from trierarch.benchmarks.workers.protocol import Ready, Steering, TokenIds, adapter_directories, serve
from trierarch.benchmarks.workers.transformers import TransformersWorker


class TransformersPeftWorker(TransformersWorker):
    """Every adapter is loaded at the start, in the type that the model has."""

    def __init__(self, model: Path) -> None:
        """Load the checkpoint `model` and the adapters."""
        super().__init__(model)
        (first, path), *others = adapter_directories().items()
        options = {"autocast_adapter_dtype": False}  # float32 otherwise, and a cast at each matrix
        self._model = peft.PeftModel.from_pretrained(self._model, str(path), adapter_name=first, **options).eval()
        for name, directory in others:
            self._model.load_adapter(str(directory), adapter_name=name, **options)
        self._names: tuple[str, ...] = ()

    @property
    def ready(self) -> Ready:
        """PEFT's release too."""
        base = super().ready
        return Ready(peft.__version__, {**base.settings, "transformers": base.version})

    def steer(self, steering: Steering) -> None:
        """See Steered.steer."""
        self._names = steering.adapters

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """One padded batch; where no adapter is asked for, none is there."""
        with nullcontext() if self._names else self._model.disable_adapter():
            return super().generate(prompts, num_output_tokens)

    def asked(self, num_prompts: int) -> Mapping[str, Any]:
        """Each row's adapter."""
        return {"adapter_names": list(islice(cycle(self._names), num_prompts))} if self._names else {}


if __name__ == "__main__":
    serve(TransformersPeftWorker)
