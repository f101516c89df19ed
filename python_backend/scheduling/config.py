"""SchedulerConfig: the limits one scheduler keeps."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of a scheduler; those of an engine come from its manifest."""

    max_batch_size: int
    """Sequences running in one step."""
    max_seq_len: int
    """Prompt and output tokens of one sequence."""
    max_num_tokens: int
    """Tokens one step computes at most; see `token_budget`."""
    max_queue_size: int
    """Requests none of whose sequences has started; one more is refused."""
    enable_chunked_prefill: bool = True
    """Whether a prompt may be computed over several steps."""
    ageing_seconds: float = 5.0
    """A request waiting this much longer than another makes up for one step of priority."""
    adapter_patience_seconds: float = 1.0
    """A sequence that finds no place for its adapter lets others overtake it for so long; then nobody behind it starts."""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit out of range."""
        for limit in fields(self):
            low = 1 if limit.name.startswith("max_") else 0
            if getattr(self, limit.name) < low:
                raise ValueError(f"{limit.name} is {getattr(self, limit.name)}: must be at least {low}")

    @property
    def token_budget(self) -> int:
        """Tokens of one step, drafts aside. Without chunked prefill the longest sequence must fit in one step."""
        return self.max_num_tokens if self.enable_chunked_prefill else max(self.max_num_tokens, self.max_seq_len)
