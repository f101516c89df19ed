"""What a beam search needs to be taken in, beyond what its first step is checked for."""

from __future__ import annotations

from trierarch.python_backend.scheduling.admission import check_length, check_slots


def check_room(num_prompt_tokens: int, max_tokens: int, max_seq_len: int, num_slots: int) -> None:
    """Raise InvalidRequest unless each beam can run to its end, alone if need be.

    num_slots: of the KV cache. A prompt that is too long by itself is left to the executor's own check.
    """
    if num_prompt_tokens < max_seq_len:
        check_length(num_prompt_tokens, max_tokens, max_seq_len)
    if num_prompt_tokens < num_slots:
        check_slots(num_prompt_tokens, max_tokens, num_slots)
