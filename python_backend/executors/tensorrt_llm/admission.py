"""Admission: what a request must satisfy before the library hears of it."""

from __future__ import annotations

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.tensorrt_llm.abilities import Abilities
from trierarch.python_backend.executors.tensorrt_llm.sampling import check_words
from trierarch.python_backend.request import Request, check_token_ids
from trierarch.python_backend.scheduling.admission import check_limits, check_slots


class Admission:
    """Of one engine. Any thread may ask it."""

    def __init__(self, manifest: EngineManifest, abilities: Abilities) -> None:
        self._manifest = manifest
        self._abilities = abilities

    def check(self, request: Request) -> None:
        """Refuse what the engine cannot do, or would silently do otherwise.

        Raises:
            InvalidRequest: the field, its value and the remedy are named.
            UnknownAdapter: it has an adapter, and the engine takes none.
        """
        manifest, sampling = self._manifest, request.sampling
        vocab_size = manifest.architecture.vocab_size
        check_token_ids("prompt_token_ids", request.prompt_token_ids, vocab_size)
        check_token_ids("draft_token_ids", request.speculation.draft_token_ids, vocab_size)
        sampling.check_vocabulary(vocab_size)
        check_limits(request, manifest.limits.max_seq_len, manifest.lora is not None)
        self._check_slots(request)
        self._abilities.check(sampling)
        check_words(sampling, manifest.tokens.eos)
        if request.cache_salt and self._abilities.cache_salt is not None:
            raise InvalidRequest("cache_salt", request.cache_salt, self._abilities.cache_salt)

    def _check_slots(self, request: Request) -> None:
        """The library would let it wait for ever. How many there are is known where the engine was given bytes."""
        kv_cache = self._manifest.kv_cache
        if kv_cache.num_bytes is not None:
            num_slots = kv_cache.num_bytes // kv_cache.bytes_per_token
            check_slots(len(request.prompt_token_ids), request.sampling.max_tokens, num_slots)
