"""ModelConfig: one model's config.pbtxt, from types to Triton's schema to its text format.

The backend's auto-complete supplies tensors, limits and the decoupled policy of every model it runs, so most configs
say three things: name, backend, instance group. An ensemble has no backend to ask and is written in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import text_format
from google.protobuf.message import Message

from trierarch.ensembles.triton_messages import model_config_pb2
from trierarch.python_backend.triton.contract import Contract, Tensor

BACKEND: Final = "trierarch"
CONFIG_NAME: Final = "config.pbtxt"
VERSION: Final = "1"
KEEP: Final = ".gitkeep"
"""Triton wants a version directory even where it holds nothing."""
MAX_LINE: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleStep:
    """One model of an ensemble and how its tensors are named inside the ensemble."""

    model: str
    inputs: Mapping[str, str]
    """The model's tensor -> the ensemble's."""
    outputs: Mapping[str, str]
    """The model's tensor -> the ensemble's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What config.pbtxt says of one model: `steps` make it an ensemble, else the backend runs it."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    is_decoupled: bool | None = None
    """None leaves it to the backend's auto-complete."""
    contract: Contract | None = None
    """Tensors; None leaves them to the backend's auto-complete."""
    max_batch_size: int | None = None
    steps: tuple[EnsembleStep, ...] = ()

    def to_message(self) -> Any:
        """The config as Triton's protobuf message."""
        message = model_config_pb2.ModelConfig(name=self.name)
        if self.steps:
            message.platform = "ensemble"
            for step in self.steps:
                message.ensemble_scheduling.step.add(
                    model_name=step.model, model_version=-1, input_map=step.inputs, output_map=step.outputs
                )
        else:
            message.backend = BACKEND
            message.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
        if self.max_batch_size is not None:
            message.max_batch_size = self.max_batch_size
        if self.is_decoupled is not None:
            message.model_transaction_policy.decoupled = self.is_decoupled
        if self.contract is not None:
            for tensor in self.contract.inputs:
                message.input.add(optional=tensor.optional, **_fields(tensor))
            for tensor in self.contract.outputs:
                message.output.add(**_fields(tensor))
        for name, value in self.parameters.items():
            message.parameters[name].string_value = value
        return message

    def to_pbtxt(self) -> str:
        """The config in protobuf's text format: each field on a line of its own where that is short."""
        return "".join(_lines(part) for part in _parts(self.to_message()))


def _fields(tensor: Tensor) -> dict[str, Any]:
    dtype = model_config_pb2.DataType.Value(tensor.dtype.in_config)
    return {"name": tensor.name, "data_type": dtype, "dims": tensor.dims}


def _parts(message: Any) -> Iterator[Message]:
    """Messages that each hold one element of one field of `message`, in the schema's order."""
    for descriptor, value in message.ListFields():
        if isinstance(value, Mapping):
            for key in sorted(value):
                part = model_config_pb2.ModelConfig()
                getattr(part, descriptor.name)[key].CopyFrom(value[key])
                yield part
            continue
        is_repeated = not isinstance(value, str | int | Message)
        for item in value if is_repeated else [value]:
            part = model_config_pb2.ModelConfig()
            if is_repeated:
                getattr(part, descriptor.name).append(item)
            elif isinstance(item, Message):
                getattr(part, descriptor.name).CopyFrom(item)
            else:
                setattr(part, descriptor.name, item)
            yield part


def _lines(part: Message) -> str:
    line = text_format.MessageToString(part, as_one_line=True) + "\n"
    return line if len(line) <= MAX_LINE else text_format.MessageToString(part)
