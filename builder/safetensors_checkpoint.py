"""A Hugging Face directory: `config.json`, one or many safetensors files, a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from trierarch.builder.checkpoint import PICKLED_SUFFIXES, TokenizerFiles
from trierarch.builder.coded_tensor import CodedTensor
from trierarch.builder.codes import Codes, CodeType
from trierarch.builder.errors import CheckpointError
from trierarch.builder.hf_quantization import dequantized_config, read_quantization
from trierarch.builder.hf_tokenizer import read_tokenizer
from trierarch.builder.json_file import read_json
from trierarch.builder.safetensors_header import Header

_INDEX_NAME: Final = "model.safetensors.index.json"
_SINGLE_NAME: Final = "model.safetensors"
_UNUSED: Final = re.compile(
    r".*\.(input_scale|activation_scale|output_scale|q_scale|k_scale|v_scale|kv_scale|weight_shape)"
)
"""Beside quantised weights: calibrated scales of activations, keys and values (why not: `fp8_tensors`), and shapes that those of
the codes say as well."""


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
        self._format = read_quantization(config, directory)
        self.config: Mapping[str, Any] = dequantized_config(config)
        self._files: dict[str, Any] = {}
        headers: dict[str, Header] = {}
        for file_name in _weight_files(directory):
            headers |= self._open(directory / file_name)
        self._coded: Mapping[str, CodedTensor] = {} if self._format is None else self._format.find(headers)
        beside = {part for one in self._coded.values() for part in one.parts}
        if self._format is not None:
            beside |= {name for name in headers if _UNUSED.fullmatch(name)}
        shapes = {name: shape for name, (_, shape) in headers.items() if name not in beside}
        self.shapes: Mapping[str, tuple[int, ...]] = shapes | {name: one.shape for name, one in self._coded.items()}

    @property
    def quantization(self) -> str | None:
        """What the quantised ones are."""
        return self._format.label if self._format is not None and self._coded else None

    @cached_property
    def code_types(self) -> Mapping[str, CodeType]:
        """Of the quantised ones."""
        return {name: one.code_type for name, one in self._coded.items()}

    @cached_property
    def needless(self) -> frozenset[str]:
        """Biases of zeros beside quantised weights: GPTQ's authors write them whether the model has biases or not."""
        biases = {f"{name.removesuffix('.weight')}.bias" for name in self._coded} & self.shapes.keys()
        return frozenset(name for name in biases if not self._read(name).any())

    def load(self, name: str) -> torch.Tensor:
        """One tensor, in the type it was stored in; a quantised one as float32."""
        if name in self._coded:
            return self._coded[name].elements(self._parts(name))
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
        """Not rounded again."""
        return self._coded[name].codes(self._parts(name))

    def tokenizer(self, vocab_size: int) -> TokenizerFiles:
        """Copied from `tokenizer.json`, or converted from an older form."""
        return read_tokenizer(self.directory, self.config, vocab_size)

    def _parts(self, name: str) -> list[torch.Tensor]:
        return [self._read(part) for part in self._coded[name].parts]

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
