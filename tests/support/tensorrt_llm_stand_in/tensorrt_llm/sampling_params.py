"""SamplingParams and GuidedDecodingParams, with the library's own checks."""

from __future__ import annotations

import os
from typing import Any

from tensorrt_llm.recorded import class_of

_GUIDES = ("json", "regex", "grammar", "json_object", "structural_tag")


class GuidedDecodingParams(class_of("GuidedDecodingParams")):  # type: ignore[misc]
    def _validate(self) -> None:
        num_guides = sum(bool(getattr(self, name)) for name in _GUIDES)
        if num_guides > 1:
            raise ValueError(f"Only one guide can be used for a request, but got {num_guides}.")


class SamplingParams(class_of("SamplingParams")):  # type: ignore[misc]
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.pad_id = self.end_id if self.pad_id is None else self.pad_id
        self.best_of = self.best_of or self.n
        if self.best_of < self.n:
            raise ValueError(f"best_of ({self.best_of}) cannot be less than n ({self.n})")
        if self.best_of > 1 and self._greedy_decoding and not os.environ.get("TLLM_ALLOW_N_GREEDY_DECODING"):
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns.")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"require top_k >= 0, got top_k={self.top_k}")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"require temperature >= 0, got temperature={self.temperature}")
        if self.guided_decoding is not None:
            self.guided_decoding._validate()

    @property
    def _greedy_decoding(self) -> bool:
        is_greedy = (self.top_k is None or self.top_k == 1) and (self.top_p is None or self.top_p == 0.0)
        return not self.use_beam_search and is_greedy
