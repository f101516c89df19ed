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
    num_prompt_tokens, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
    # The last token drawn is never computed.
    num_slots = num_prompt_tokens + max_tokens - 1
    if kv.num_blocks_for(num_slots) > kv.num_blocks:
        raise InvalidRequest(
            "max_tokens",
            max_tokens,
            f"with {num_prompt_tokens} prompt tokens it needs {num_slots} KV slots and the cache has "
            f"{kv.num_blocks * kv.block_size}; ask for fewer tokens or give the KV cache more memory",
        )


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
    if num_prompt_tokens + max_tokens > max_seq_len:
        raise InvalidRequest(
            "max_tokens",
            max_tokens,
            f"must be at most {max_seq_len - num_prompt_tokens} after {num_prompt_tokens} prompt tokens, "
            f"since the engine's max_seq_len is {max_seq_len}",
        )
    if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise InvalidRequest("priority", request.priority, f"must be between {-MAX_PRIORITY} and {MAX_PRIORITY}")


def queue_is_full(max_queue_size: int) -> str:
    """What is said then. Clients of TensorRT-LLM look for the second half over HTTP, and for the first over gRPC."""
    return (
        f"Exceeds maximum queue size: Maximum queue size of {max_queue_size} has been reached, please try again later"
    )
