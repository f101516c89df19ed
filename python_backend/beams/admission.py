"""What a beam search needs to be taken in, beyond what its first step is checked for."""

from __future__ import annotations

from trierarch.python_backend.errors import InvalidRequest


def check_room(num_prompt_tokens: int, max_tokens: int, max_seq_len: int, num_slots: int) -> None:
    """Raise InvalidRequest unless each beam can run to its end, alone if need be.

    num_slots: of the KV cache. A prompt that is too long by itself is left to the executor's own check.
    """
    most = max_seq_len - num_prompt_tokens
    if 0 < most < max_tokens:
        raise InvalidRequest(
            "max_tokens",
            max_tokens,
            f"must be at most {most} after {num_prompt_tokens} prompt tokens, since the engine's max_seq_len is "
            f"{max_seq_len}",
        )
    # The last token is never computed.
    if num_prompt_tokens < num_slots < num_prompt_tokens + max_tokens - 1:
        raise InvalidRequest(
            "max_tokens",
            max_tokens,
            f"with {num_prompt_tokens} prompt tokens it needs {num_prompt_tokens + max_tokens - 1} KV slots and the "
            f"cache has {num_slots}; ask for fewer tokens or give the KV cache more memory",
        )
