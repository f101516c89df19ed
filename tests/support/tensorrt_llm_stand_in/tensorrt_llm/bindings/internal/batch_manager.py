"""The errors of the cache of adapters."""


class PeftTaskNotCachedException(RuntimeError):
    """A task came without weights, and is not in the cache."""


class LoraCacheFullException(RuntimeError):
    """All that is in the cache is in use."""
