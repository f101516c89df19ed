"""What a request's tensors say about guessing ahead."""

from __future__ import annotations

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import SpeculationParams
from trierarch.python_backend.triton.inputs import Inputs


def read_speculation(inputs: Inputs) -> SpeculationParams:
    """The options of a row: our `max_draft_tokens` and `drafters`, and the contract's `draft_input_ids`.

    `num_draft_tokens` is what tensorrt_llm_bls calls `max_draft_tokens`. There it is how many a draft model is asked for
    each round, and without it there is no guessing; here any number is a bound, and only 0 switches guessing off.

    Raises:
        InvalidRequest: a value out of range, an unknown drafter, or tensors that contradict each other.
    """
    name, most = _max_draft_tokens(inputs)
    drafters = _drafters(inputs)
    draft = inputs.integers("draft_input_ids") or ()
    if most == 0 and draft:
        raise InvalidRequest("draft_input_ids", draft, f"contradicts {name}, which is 0; send one of them")
    if most == 0 and drafters:
        raise InvalidRequest("drafters", ",".join(drafters), f"contradicts {name}, which is 0; send one of them")
    if most is not None and most < 0:
        raise InvalidRequest(name, most, "must be at least 0, which switches guessing off")
    return SpeculationParams(max_draft_tokens=most, drafters=drafters or None, draft_token_ids=draft)


def _max_draft_tokens(inputs: Inputs) -> tuple[str, int | None]:
    """Name and value of the tensor that bounds drafts."""
    ours, theirs = inputs.integer("max_draft_tokens"), inputs.integer("num_draft_tokens")
    if ours is not None and theirs is not None and ours != theirs:
        raise InvalidRequest(
            "max_draft_tokens", ours, f"contradicts num_draft_tokens, which is {theirs}; send one of them"
        )
    return ("max_draft_tokens", ours) if theirs is None else ("num_draft_tokens", theirs)


def _drafters(inputs: Inputs) -> tuple[DrafterKind, ...]:
    """In the order they were named, each once; clients pad lists with empty strings."""
    kinds: dict[DrafterKind, None] = {}
    for name in filter(None, inputs.texts("drafters")):
        if name not in list(DrafterKind):
            raise InvalidRequest("drafters", name, f"known are {', '.join(DrafterKind)}")
        kinds[DrafterKind(name)] = None
    return tuple(kinds)
