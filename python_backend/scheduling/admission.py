"""What a request must satisfy to be taken in, beyond what its own types check."""

from __future__ import annotations

from typing import Final

from trierarch.python_backend.errors import InvalidRequest, UnknownAdapter
from trierarch.python_backend.guides.admission import check_guide
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import Request
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.queue import MAX_PRIORITY

NO_ADAPTERS: Final = "this engine takes no adapters; leave it out, or rebuild the engine with --max-adapters 1 or more"

NO_GUIDES: Final = "this engine has no tokenizer, and guides are about text; leave it out"


def check_request(
    request: Request,
    config: SchedulerConfig,
    kv: KVCacheManager,
    takes_adapters: bool = False,
    takes_guides: bool = False,
) -> None:
    """Raise InvalidRequest unless each of the request's sequences can run to its end, alone if need be."""
    check_limits(request, config.max_seq_len, takes_adapters)
    if request.sampling.guide is not None:
        if not takes_guides:
            raise InvalidRequest("guide", request.sampling.guide.kind.value, NO_GUIDES)
        check_guide(request.sampling.guide)
    check_slots(len(request.prompt_token_ids), request.sampling.max_tokens, kv.num_blocks * kv.block_size)


def check_limits(request: Request, max_seq_len: int, takes_adapters: bool) -> None:
    """Raise InvalidRequest unless the request is within what every executor of the engine takes."""
    if request.adapter is not None and not takes_adapters:
        raise UnknownAdapter("adapter", request.adapter.name, NO_ADAPTERS)
    num_prompt_tokens, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
    if num_prompt_tokens == 0:
        raise InvalidRequest("number of prompt tokens", 0, "must be at least 1")
    if num_prompt_tokens >= max_seq_len:
        raise InvalidRequest(
            "number of prompt tokens",
            num_prompt_tokens,
            f"must be below the engine's max_seq_len ({max_seq_len}) to leave room for an answer; "
            "shorten the prompt or build the engine with a larger max_seq_len",
        )
    check_length(num_prompt_tokens, max_tokens, max_seq_len)
    if len(request.answer_so_far) >= max_tokens:
        raise InvalidRequest(
            "max_tokens", max_tokens, f"must be above the {len(request.answer_so_far)} output tokens that are known"
        )
    if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise InvalidRequest("priority", request.priority, f"must be between {-MAX_PRIORITY} and {MAX_PRIORITY}")


def check_length(num_prompt_tokens: int, max_tokens: int, max_seq_len: int) -> None:
    """Raise InvalidRequest unless an answer fits behind its prompt; there must be room for some."""
    if num_prompt_tokens + max_tokens > max_seq_len:
        raise InvalidRequest(
            "max_tokens",
            max_tokens,
            f"must be at most {max_seq_len - num_prompt_tokens} after {num_prompt_tokens} prompt tokens, "
            f"since the engine's max_seq_len is {max_seq_len}",
        )


def check_slots(num_prompt_tokens: int, max_tokens: int, num_slots: int) -> None:
    """Raise InvalidRequest unless the KV cache, of `num_slots` tokens, holds a sequence to its end."""
    needed = num_prompt_tokens + max_tokens - 1  # the last token drawn is never computed
    if needed > num_slots:
        raise InvalidRequest(
            "max_tokens",
            max_tokens,
            f"with {num_prompt_tokens} prompt tokens it needs {needed} KV slots and the cache has "
            f"{num_slots}; ask for fewer tokens or give the KV cache more memory",
        )


def queue_is_full(max_queue_size: int) -> str:
    """What is said then. Clients of TensorRT-LLM look for the second half over HTTP, and for the first over gRPC."""
    return (
        f"Exceeds maximum queue size: Maximum queue size of {max_queue_size} has been reached, please try again later"
    )
