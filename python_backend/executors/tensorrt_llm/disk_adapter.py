"""DiskAdapter: an adapter as TensorRT-LLM loads it, a directory of PEFT's, for as long as anybody has this.

The directory is written from the tensors that were read and checked, never the operator's own: the library reads it again
whenever it has let go of the adapter, and by then that may hold another version. Nor does the library honour all that PEFT
does: it knows one alpha, divides it by each matrix's own rank, and fills up what is missing of q, k and v in a shape that
is wrong where there are fewer keys than queries. So every matrix is padded to one rank, all of alpha is in `b` already,
and what is missing of q, k and v is zeros.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from trierarch.builder.adapter import LAYER_PIECES, AdapterTensors, piece_shape
from trierarch.builder.manifest import Architecture
from trierarch.builder.safetensors_file import write_safetensors
from trierarch.builder.tensorrt_llm.compatibility import check_servable
from trierarch.builder.tensors import Array

CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"
_MODULES: Final = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Piece -> the module that the library finds it by."""
_TOGETHER: Final = ("q", "k", "v")


class DiskAdapter:
    """Implements Arranged."""

    def __init__(self, path: Path, num_bytes: int, task_ids: Iterator[int]) -> None:
        """`path` is removed with this. `task_ids` gives numbers that no adapter has had."""
        self.path = path
        self.num_bytes = num_bytes
        self._task_ids = task_ids
        self.task_id = next(task_ids)
        """What the library's caches go by: no other adapter ever has it, nor another version of this one."""
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    def renew(self) -> None:
        """Take another number, under which the library has to load it whatever it believes of the last one."""
        self.task_id = next(self._task_ids)


class DiskAdapters:
    """Writes adapters into a folder of its own, which goes with `close`.

    Its lock is held while we live, as a server's run directory holds one: whoever starts the next server removes what a
    process that was killed has left.
    """

    def __init__(self, architecture: Architecture) -> None:
        """`architecture`: of the engine."""
        self._architecture = architecture
        self._folder = Path(tempfile.mkdtemp(prefix="trierarch-adapters-"))
        self._lock = (self._folder / "lock").open("x")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._task_ids = itertools.count(1)

    def arrange(self, tensors: AdapterTensors) -> DiskAdapter:
        """Write an adapter. Any thread.

        Raises:
            AdapterError: it has parts that TensorRT-LLM does not serve.
            ResourceError: the disk is full or cannot be written.
        """
        check_servable(tensors.manifest)
        path = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            num_bytes = _write(tensors, self._architecture, path)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return DiskAdapter(path, num_bytes, self._task_ids)

    def close(self) -> None:
        """Remove the folder. Idempotent."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()


def _write(tensors: AdapterTensors, architecture: Architecture, path: Path) -> int:
    rank = tensors.manifest.rank
    arrays = dict(_matrices(tensors, architecture, rank))
    write_safetensors(path / WEIGHTS_NAME, arrays, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-3] for name in arrays}),
    }
    (path / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return sum(array.nbytes for array in arrays.values())


def _matrices(tensors: AdapterTensors, architecture: Architecture, rank: int) -> Iterator[tuple[str, Array]]:
    dtype = next(iter(tensors.arrays.values())).dtype
    for layer in range(architecture.num_layers):
        present = [piece for piece in LAYER_PIECES if f"layers.{layer}.{piece}.a" in tensors.arrays]
        missing = _TOGETHER if set(present) & set(_TOGETHER) else ()
        for piece in sorted({*present, *missing}):
            out_size, in_size = piece_shape(architecture, piece)
            a, b = np.zeros((rank, in_size), dtype), np.zeros((out_size, rank), dtype)
            if piece in present:
                own_a, own_b = (tensors.arrays[f"layers.{layer}.{piece}.{part}"] for part in "ab")
                a[: own_a.shape[0]], b[:, : own_b.shape[1]] = own_a, own_b
            stem = f"base_model.model.model.layers.{layer}.{_MODULES[piece]}"
            yield f"{stem}.lora_A.weight", a
            yield f"{stem}.lora_B.weight", b
