"""The guess that a request brings along: the contract's `draft_input_ids`."""

from __future__ import annotations

from trierarch.python_backend.sequence import Sequence


def client_draft(sequence: Sequence, max_tokens: int) -> tuple[int, ...]:
    """What is left of the caller's guess while the output agrees with it."""
    guess = sequence.request.speculation.draft_token_ids
    num_output_tokens = sequence.num_output_tokens
    if len(guess) <= num_output_tokens or tuple(sequence.output_token_ids) != guess[:num_output_tokens]:
        return ()
    return guess[num_output_tokens : num_output_tokens + max_tokens]
