"""What a failure of the library means: for the request that met it, or for all.

The library has few classes for its errors, and its processes pass them on as text; so the text decides.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

NOT_CACHED: Final = "not found in cache. Please send LoRA weights with request"
CACHE_FULL: Final = "Cache is full. There are no done tasks to evict"
_FATAL: Final = (
    "cuda error",
    "cudaerror",
    "cuda driver error",
    "cuda runtime error",
    "illegal memory access",
    "executor worker died",
    "mpi_abort",
    "mpi error",
    "mpi worker",
    "nccl error",
    "llm is shutting down",
    "executor has been shutdown",
)
_REQUEST_ERROR: Final = "RequestError"
_LORA_ERRORS: Final = {"PeftTaskNotCachedException": NOT_CACHED, "LoraCacheFullException": CACHE_FULL}


class Failure(Enum):
    """What is to be done."""

    NOT_CACHED = auto()
    """The library has let go of the adapter: send the request again with it."""
    CACHE_FULL = auto()
    """All adapters that the library holds are in use: send the request again later."""
    INVALID = auto()
    """The library refuses what was asked."""
    REQUEST = auto()
    """This request failed, and others go on."""
    ENGINE = auto()
    """Nothing runs in this process any more."""


def judge(error: BaseException) -> Failure:
    """What `error`, raised by the library, means."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    said = text + "".join(meaning for name, meaning in _LORA_ERRORS.items() if name in names | {text.split(":")[0]})
    if NOT_CACHED in said:
        return Failure.NOT_CACHED
    if CACHE_FULL in said:
        return Failure.CACHE_FULL
    if any(sign in text.lower() for sign in _FATAL):
        return Failure.ENGINE
    if _REQUEST_ERROR in names:
        return Failure.REQUEST
    if isinstance(error, ValueError | TypeError | AssertionError | NotImplementedError):
        return Failure.INVALID
    return Failure.ENGINE
