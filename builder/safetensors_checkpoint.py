"""A Hugging Face directory: `config.json`, one or many safetensors files, a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from trierarch.builder.checkpoint import PICKLED_SUFFIXES, TokenizerFiles
from trierarch.builder.codes import Codes
from trierarch.builder.errors import CheckpointError
from trierarch.builder.hf_tokenizer import read_tokenizer
from trierarch.builder.json_file import read_json

_INDEX_NAME: Final = "model.safetensors.index.json"
_SINGLE_NAME: Final = "model.safetensors"


class SafetensorsCheckpoint:
    """Tensors are memory-mapped; reading one touches nothing else."""

    has_folded_norms: Final = False
    quantization: Final = None
    code_bits: Final[Mapping[str, int]] = MappingProxyType({})

    def __init__(self, directory: Path, name: str | None = None) -> None:
        """Read the configuration and every file's header.

        Raises:
            CheckpointError: a file is missing, damaged, pickled or outside `directory`.
        """
        self.name = name or directory.resolve().name
        self.directory = directory
        self.config: Mapping[str, Any] = read_json(directory / "config.json")
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file_name in _weight_files(directory):
            self._open(directory / file_name)

    def load(self, name: str) -> torch.Tensor:
        """One tensor, in the type it was stored in."""
        tensor = self._read(name)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise CheckpointError(
                f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}: this builder reads unquantised weights; "
                "take the original checkpoint"
            )
        return tensor

    def load_integers(self, name: str) -> torch.Tensor:
        """One tensor of integers, as int64.

        Raises:
            CheckpointError: its bytes cannot be read, or are of another type.
        """
        tensor = self._read(name)
        if tensor.dtype not in (torch.int64, torch.int32, torch.int16):
            raise CheckpointError(
                f"{name} is of type {str(tensor.dtype).removeprefix('torch.')} in place of an integer; "
                "download the checkpoint again"
            )
        return tensor.to(torch.int64)

    def load_codes(self, name: str) -> Codes:
        """Never asked for: `code_bits` is empty."""
        raise AssertionError(f"{name} is not stored as codes")

    def tokenizer(self, vocab_size: int) -> TokenizerFiles:
        """Copied from `tokenizer.json`, or converted from an older form."""
        return read_tokenizer(self.directory, self.config, vocab_size)

    def _read(self, name: str) -> torch.Tensor:
        try:
            tensor: torch.Tensor = self._files[name].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{name} cannot be read ({error}); download the checkpoint again") from error
        return tensor

    def _open(self, path: Path) -> None:
        try:
            file: Any = safe_open(str(path), framework="pt")
            for name in file.keys():  # noqa: SIM118 - not a dict
                self.shapes[name] = tuple(file.get_slice(name).get_shape())
                self._files[name] = file
        except FileNotFoundError:
            raise CheckpointError(f"{path.name} is missing; download the checkpoint again") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path.name} cannot be read ({error}); download the checkpoint again") from error


def _weight_files(directory: Path) -> list[str]:
    index = directory / _INDEX_NAME
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{_INDEX_NAME}: weight_map is missing; download the checkpoint again")
        names = sorted(set(map(str, weight_map.values())))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{_INDEX_NAME} names {json.dumps(name)}: only safetensors files beside it are read"
                )
        return names
    if (directory / _SINGLE_NAME).is_file():
        return [_SINGLE_NAME]
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if len(found) == 1:
        return found
    pickled = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLED_SUFFIXES)
    if pickled:
        raise CheckpointError(
            f"{pickled[0]} is pickled, and reading it would run its code; take the checkpoint's safetensors or GGUF"
        )
    raise CheckpointError(f"{directory.name} has no {_SINGLE_NAME} and no {_INDEX_NAME}; download the checkpoint again")
