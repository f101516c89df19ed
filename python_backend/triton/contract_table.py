"""docs/contract.md: what becomes of each tensor and parameter, from the tables that decide it.

`python -m trierarch.python_backend.triton.contract_table` prints it; `pytest --regenerate` on its test writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from trierarch.python_backend.triton.abilities_table import COLUMNS, abilities_rows
from trierarch.python_backend.triton.contract import CONTRACTS, ENSEMBLE, NEVER_FILLED, Contract, Role, Tensor
from trierarch.python_backend.triton.parameters import Parameters
from trierarch.python_backend.triton.refusals import HINTS, REFUSALS
from trierarch.python_backend.triton.vllm_parameters import PARAMETERS, SOURCE

_HEAD: Final = """# The contract, tensor by tensor

Written by `python -m trierarch.python_backend.triton.contract_table`; do not edit it. Dims leave out the batch dimension
where a model has one.

- *honoured*: does what TensorRT-LLM's backend does with it, or what our documentation says where it is ours.
- *a hint*: accepted and ignored, since it changes no output here.
- *refused*: INVALID_ARGUMENT with this reason, unless its value asks for nothing.

This is what our own executors do. An engine for TensorRT-LLM takes the same tensors, and refuses by name what its release,
flow and sampler have no code for: [the last table](#with-an-engine-for-tensorrt-llm).
"""
_TENSORRT_LLM: Final = """## With an engine for TensorRT-LLM

Of engines that `trierarch build --target tensorrt_llm` makes without speculation, and where needed with these options. All of
it is held to recorded names and a stand-in; TensorRT-LLM itself has run none of it.
"""
_NOTES: Final = """An engine that speculates tells no logits and nothing of prompts. In the PyTorch flow it guides nothing, and TorchSampler draws:
up to 1.2 without penalties, min_p and seeds, before 1.2 also without min_tokens, biases and bad words, and greedily alone; so it
is with `--tensorrt-llm-sampler torch`, which in 1.1 and 1.2 tells `num_log_probs` above 0 without `--gather-logits`. One that
speculates by `mtp` or `eagle3`, in 1.3 by anybody but `prompt_lookup`, tells no log-probs either.
"""
_ENSEMBLE: Final = "ensemble"


def table() -> str:
    """The whole file."""
    models = {**{role.value: CONTRACTS[role] for role in CONTRACTS if role is not Role.ADAPTER}, _ENSEMBLE: ENSEMBLE}
    parts = [_HEAD]
    parts += ["\n".join(_model(name, contract)) for name, contract in models.items()]
    parts.append("\n".join(_sampling_parameters()))
    parts.append("\n".join(_parameters()))
    parts.append("\n".join(_tensorrt_llm()))
    return "\n".join(parts)


def _model(name: str, contract: Contract) -> Iterator[str]:
    yield f"## {name}\n"
    yield from _rows(("input", "type", "here"), ((t.name, _type(t), _fate(t)) for t in contract.inputs))
    yield from _rows(("output", "type", "here"), ((t.name, _type(t), _filling(t)) for t in contract.outputs))


def _sampling_parameters() -> Iterator[str]:
    yield f"## vllm's {SOURCE}\n"
    yield "vLLM's names, in the tensor as JSON or as parameters of the request. Any other name is refused.\n"
    fates = ((name, f"refused: {each.refusal}" if each.refusal else "honoured") for name, each in PARAMETERS.items())
    yield from _rows(("parameter", "here"), fates)


def _parameters() -> Iterator[str]:
    yield "## Parameters of config.pbtxt\n"
    yield "One table for all models; a name that is not in it fails the model, so that no setting is lost.\n"
    fields = ((name, _shown(field.get_default(call_default_factory=True))) for name, field in _fields())
    yield from _rows(("parameter", "default"), fields)


def _tensorrt_llm() -> Iterator[str]:
    yield _TENSORRT_LLM
    yield from _rows(("input", *(f"{release} {flow.value}" for release, flow in COLUMNS)), abilities_rows())
    yield _NOTES.rstrip()


def _fields() -> Iterable[tuple[str, Any]]:
    return Parameters.model_fields.items()


def _shown(default: object) -> str:
    return "unset" if default in (None, "", ()) else str(default).lower() if isinstance(default, bool) else str(default)


def _fate(tensor: Tensor) -> str:
    if tensor.name in HINTS:
        return f"a hint: {HINTS[tensor.name]}"
    refusal = REFUSALS.get(tensor.name)
    if refusal is None:
        return "honoured" if tensor.optional else "honoured, required"
    neutral = [repr(value) for value in refusal.neutral if value != b""]
    return f"refused{' unless ' + ' or '.join(neutral) if neutral else ''}: {refusal.remedy}"


def _filling(tensor: Tensor) -> str:
    return "declared, never filled" if tensor.name in NEVER_FILLED else "honoured"


def _type(tensor: Tensor) -> str:
    return f"{tensor.dtype}[{','.join(map(str, tensor.dims))}]"


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for cells in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201 - it is what this is for
