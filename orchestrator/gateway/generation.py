"""Generation: what a request asks the model for, one prompt or several, checked before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trierarch.orchestrator.gateway.fields import Fields
from trierarch.orchestrator.gateway.tensors import Tensors

MAX_TOKENS: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One request of the model for each prompt."""

    model: str
    """As the client named it."""
    prompts: tuple[Tensors, ...]
    """Inputs, without what depends on who is asked."""
    n: int
    """Answers of each prompt."""
    is_streaming: bool
    include_usage: bool
    """Whether a stream ends with the usage."""
    has_logprobs: bool
    has_prompt_logprobs: bool = False
    has_beams: bool = False
    """Whether the answers are the best of a beam search, which come all at once."""

    def outputs(self) -> list[str]:
        """Outputs of the model that the answer is made of."""
        names = ["text_output", "finish_reason", "usage"]
        if self.has_beams:
            names.append("num_output_tokens")
        elif self.n > 1:
            names.append("sequence_index")
        if self.has_logprobs:
            names += ["top_log_probs", "token_bytes"]
        if self.has_prompt_logprobs:
            names.append("prompt_log_probs")
        return names


def read_model(fields: Fields) -> str:
    """The model that is asked."""
    model = fields.text("model")
    if not model:
        fields.fail("model", "you must provide a model; GET /v1/models lists them")
    return model


def read_streaming(fields: Fields) -> tuple[bool, bool]:
    """(whether to stream, whether the stream ends with the usage)."""
    is_streaming = fields.flag("stream")
    options = fields.object("stream_options")
    if options is None:
        return is_streaming, False
    if not is_streaming:
        fields.fail("stream_options", "is for streams; send stream: true, or leave it out")
    options.refuse_others({"include_usage", "include_obfuscation"})
    return is_streaming, options.flag("include_usage")


def common_tensors(is_streaming: bool) -> Tensors:
    """What every request of the gateway says."""
    tensors = Tensors()
    tensors.flag("stream", is_streaming)
    for name in ("return_finish_reason", "return_usage", "exclude_input_in_output"):
        tensors.flag(name)
    return tensors
