"""What a request's tensors say about the adapter it runs with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trierarch.python_backend.errors import InvalidRequest, UnknownAdapter
from trierarch.python_backend.triton.inputs import Array, Inputs

BY_NAME: Final = "lora_name"
BY_TASK: Final = "lora_task_id"


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """`lora_weights` (M, W) and `lora_config` (M, 3) of a row, not looked at yet."""

    weights: Array
    config: Array


@dataclass(frozen=True, slots=True)
class AdapterInput:
    """The adapter of a row."""

    name: str = ""
    """Empty is the base model."""
    tensor: str = BY_NAME
    """The tensor that named it."""
    upload: LoraTensors | None = None
    """What the name is to mean from now on."""


BASE_MODEL: Final = AdapterInput()


def read_adapter(inputs: Inputs) -> AdapterInput:
    """Our `lora_name`, or the contract's `lora_task_id`: N is the adapter of that decimal name, 0 is the base model.

    Raises:
        InvalidRequest: the two contradict each other, or weights come without what they need.
    """
    name, task = inputs.text(BY_NAME) or "", inputs.integer(BY_TASK) or 0
    if name and task and name != str(task):
        raise InvalidRequest(BY_NAME, name, f"contradicts {BY_TASK}, which is {task}; send one of them")
    weights, config = inputs.row("lora_weights"), inputs.row("lora_config")
    if weights is None and config is None:
        return AdapterInput(str(task), BY_TASK) if task else AdapterInput(name)
    if weights is None or config is None:
        missing, sent = ("lora_weights", "lora_config") if weights is None else ("lora_config", "lora_weights")
        raise InvalidRequest(missing, None, f"{sent} comes with it; send both, or neither")
    if not task:
        raise InvalidRequest(BY_TASK, task, "lora_weights are of a task; send its id, above 0")
    return AdapterInput(str(task), BY_TASK, LoraTensors(weights, config))


def unknown_task(task: str) -> UnknownAdapter:
    """No adapter of that id: in TensorRT-LLM's words, for which clients wait to send the weights again."""
    return UnknownAdapter(
        BY_TASK, int(task), f"LoRA task {task} not found in cache. Please send LoRA weights with request"
    )
