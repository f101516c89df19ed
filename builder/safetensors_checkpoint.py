"""A Hugging Face directory: `config.json`, one or many safetensors files, a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from trierarch.builder.checkpoint import PICKLED_SUFFIXES, TokenizerFiles
from trierarch.builder.codes import Codes, CodeType
from trierarch.builder.errors import CheckpointError
from trierarch.builder.fp8_tensors import Fp8Tensor, beside_weights, dequantize, find_fp8, read_fp8
from trierarch.builder.hf_quantization import dequantized_config, read_quantization
from trierarch.builder.hf_tokenizer import read_tokenizer
from trierarch.builder.json_file import read_json
from trierarch.builder.safetensors_header import Header

_INDEX_NAME: Final = "model.safetensors.index.json"
_SINGLE_NAME: Final = "model.safetensors"


class SafetensorsCheckpoint:
    """Tensors are memory-mapped; reading one touches nothing else."""

    has_folded_norms: Final = False

    def __init__(self, directory: Path, name: str | None = None) -> None:
        """Read the configuration and every file's header.

        Raises:
            CheckpointError: a file is missing, damaged, pickled or outside `directory`; weights are quantised in a way that
                is not read.
        """
        self.name = name or directory.resolve().name
        self.directory = directory
        config = read_json(directory / "config.json")
        quantization = read_quantization(config, directory)
        self.config: Mapping[str, Any] = dequantized_config(config)
        self._files: dict[str, Any] = {}
        headers: dict[str, Header] = {}
        for file_name in _weight_files(directory):
            headers |= self._open(directory / file_name)
        self._fp8: Mapping[str, Fp8Tensor] = {} if quantization is None else find_fp8(headers, quantization.block)
        beside = frozenset() if quantization is None else beside_weights(headers, self._fp8)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape for name, (_, shape) in headers.items() if name not in beside
        }

    @property
    def quantization(self) -> str | None:
        """FP8, and what has a scale."""
        if not self._fp8:
            return None
        blocks = {one.block for one in self._fp8.values() if one.block is not None}
        return f"FP8, {' or '.join(f'{rows}x{inputs}' for rows, inputs in blocks)} blocks" if blocks else "FP8"

    @cached_property
    def code_types(self) -> Mapping[str, CodeType]:
        """Of what is FP8."""
        return {name: one.code_type for name, one in self._fp8.items()}

    def load(self, name: str) -> torch.Tensor:
        """One tensor, in the type it was stored in; FP8 as float32."""
        if name in self._fp8:
            return dequantize(self.load_codes(name), self._fp8[name].block)
        tensor = self._read(name)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise CheckpointError(
                f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}, and config.json does not say what it stands "
                "for; take the original checkpoint"
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
        """Codes and scales as they are stored, or one scale for each row in place of one for all."""
        found = self._fp8[name]
        return read_fp8(name, self._read(name), self._read(found.scale), found.block)

    def tokenizer(self, vocab_size: int) -> TokenizerFiles:
        """Copied from `tokenizer.json`, or converted from an older form."""
        return read_tokenizer(self.directory, self.config, vocab_size)

    def _read(self, name: str) -> torch.Tensor:
        try:
            tensor: torch.Tensor = self._files[name].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{name} cannot be read ({error}); download the checkpoint again") from error
        return tensor

    def _open(self, path: Path) -> dict[str, Header]:
        """Its tensors by name."""
        headers: dict[str, Header] = {}
        try:
            file: Any = safe_open(str(path), framework="pt")
            for name in file.keys():  # noqa: SIM118 - not a dict
                stored = file.get_slice(name)
                headers[name] = stored.get_dtype(), tuple(stored.get_shape())
                self._files[name] = file
        except FileNotFoundError:
            raise CheckpointError(f"{path.name} is missing; download the checkpoint again") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path.name} cannot be read ({error}); download the checkpoint again") from error
        return headers


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
