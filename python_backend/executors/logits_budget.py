"""LogitsBudget: how many bytes of logits may be told at once. A vocabulary of floats for each token is soon more than fits."""

from __future__ import annotations

from typing import Final

from trierarch.python_backend.errors import InvalidRequest, Overloaded
from trierarch.python_backend.request import Request

MOST_BYTES: Final = 512 << 20
"""Of all requests that live; a response of one may become as large, and messages of gRPC end at 2 GiB."""
_BYTES: Final = 4


class LogitsBudget:
    """What the live requests may still be told. Its owner sees to it that one thread calls it at a time."""

    def __init__(self, vocab_size: int, max_bytes: int = MOST_BYTES, *, keeps_prompts: bool = False) -> None:
        """`keeps_prompts`: whether log-probs of a prompt are worked out of logits that are all there at once."""
        self._vocab_size = vocab_size
        self._max_bytes = max_bytes
        self._keeps_prompts = keeps_prompts
        self._held: dict[str, int] = {}  # request id -> bytes

    def check(self, request: Request) -> None:
        """Raise InvalidRequest for a request that would never fit, Overloaded for one that does not fit now."""
        num_bytes = self._num_bytes(request)
        if num_bytes > self._max_bytes:
            name = self._largest(request)
            raise InvalidRequest(
                name,
                getattr(request.sampling, name),
                f"{num_bytes // self._row_bytes} tokens of {self._row_bytes} bytes make {num_bytes} bytes of logits, at "
                f"most {self._max_bytes} are kept; shorten the prompt or max_tokens, or ask for less",
            )
        if num_bytes and num_bytes + sum(self._held.values()) > self._max_bytes:
            raise Overloaded(f"the logits that others wait for leave no room for {num_bytes} bytes more; retry")

    def hold(self, request: Request) -> None:
        """A request was taken in that `check` let pass."""
        if num_bytes := self._num_bytes(request):
            self._held[request.request_id] = num_bytes

    def release(self, request_id: str) -> None:
        """A request ended."""
        self._held.pop(request_id, None)

    @property
    def _row_bytes(self) -> int:
        return self._vocab_size * _BYTES

    def _num_bytes(self, request: Request) -> int:
        sampling = request.sampling
        num_rows = len(request.prompt_token_ids) * self._takes_prompt(request)
        num_rows += sampling.n * sampling.max_tokens * sampling.return_generation_logits
        return num_rows * self._row_bytes

    def _takes_prompt(self, request: Request) -> bool:
        sampling = request.sampling
        return sampling.tells_prompt if self._keeps_prompts else sampling.return_context_logits

    def _largest(self, request: Request) -> str:
        """The field that a request is refused for."""
        if not self._takes_prompt(request):
            return "return_generation_logits"
        return "return_context_logits" if request.sampling.return_context_logits else "prompt_logprobs"
