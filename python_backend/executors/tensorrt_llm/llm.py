"""What of TensorRT-LLM's LLM, and of what it returns, is used here; named as the LLM API names it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol


class Completion(Protocol):
    """CompletionOutput: one sequence so far."""

    token_ids: Sequence[int]
    """All so far, in streaming too; the prompt's are not among them."""
    logprobs: Sequence[Any] | None
    """One for each of `token_ids` where asked: {token id: object with `logprob`}, or the number alone."""
    generation_logits: Any
    """Where asked: (n, padded vocabulary), of the tokens that this step drew."""
    finish_reason: str | None
    """stop, length, timeout or cancelled, once it ended."""
    request_perf_metrics: Any
    """With the last step, where asked."""


class Generation(Protocol):
    """RequestOutput: a request under way; iterating it gives itself, once for each step that brought something."""

    outputs: Sequence[Completion]
    context_logits: Any
    """Where asked: (prompt tokens, padded vocabulary), fewer rows where blocks were reused; perhaps with each step."""
    finished: bool

    def abort(self) -> None:
        """Give it up."""
        ...

    def __aiter__(self) -> AsyncIterator[Generation]: ...


class LLM(Protocol):
    """`tensorrt_llm.LLM` or `tensorrt_llm._tensorrt_engine.LLM`. All calls from the thread whose event loop it was made in."""

    def generate_async(self, inputs: list[int], **arguments: Any) -> Generation:
        """Start a request."""
        ...

    def get_stats_async(self, timeout: float) -> AsyncIterator[dict[str, Any]]:
        """What iterations told since the last call, each once; ends after `timeout` seconds without one."""
        ...

    def get_kv_cache_events_async(self, timeout: float) -> AsyncIterator[Any]:
        """Events of the KV cache since the last call, likewise; only where `event_buffer_max_size` holds some."""
        ...

    def shutdown(self) -> None:
        """Stop the engine's processes."""
        ...
