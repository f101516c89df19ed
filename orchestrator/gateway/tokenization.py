"""/tokenize and /detokenize, as vLLM has them; the model does the work, which has the tokenizer and the chat template."""

from __future__ import annotations

from typing import Any, Final

from trierarch.orchestrator.gateway.catalogue import Catalogue
from trierarch.orchestrator.gateway.chat_request import CHAT
from trierarch.orchestrator.gateway.completion_request import MAX_PROMPT_TOKENS, with_prompt
from trierarch.orchestrator.gateway.engine import Engine
from trierarch.orchestrator.gateway.errors import ApiError
from trierarch.orchestrator.gateway.fields import Fields
from trierarch.orchestrator.gateway.generation import read_model
from trierarch.orchestrator.gateway.messages import chat_json
from trierarch.orchestrator.gateway.sampling import read_token_ids
from trierarch.orchestrator.gateway.tensors import Tensors, all_integers, first_text, outputs_of
from trierarch.orchestrator.gateway.tools import read_tools
from trierarch.orchestrator.gateway.triton import Triton

_OUTPUTS: Final = ("output_ids", "text_output")


class Tokenization:
    """Asks the model for a prompt's tokens, or for a text of tokens."""

    def __init__(self, triton: Triton, catalogue: Catalogue) -> None:
        self._triton, self._catalogue = triton, catalogue

    async def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tokens of a `prompt`, or of `messages` in the model's chat template.

        Raises:
            ApiError: a field is missing, unknown or of another type.
            Unavailable, RelayedError: the model refuses it, or cannot be asked.
        """
        fields = Fields(body)
        fields.refuse_others(CHAT | {"model", "prompt", "tools", "add_special_tokens"})
        engine, _ = await self._catalogue.find(read_model(fields))
        tensors = Tensors()
        prompt = fields.text("prompt")
        if "messages" in fields:
            if prompt is not None:
                fields.fail("prompt", "is given with messages; send one of them")
            tensors.texts("messages", chat_json(fields, read_tools(fields)))
        elif prompt is None:
            fields.fail("prompt", "send a prompt, or messages")
        else:
            tensors.texts("text_input", prompt)
        if "add_special_tokens" in fields:
            tensors.flag("add_special_tokens", fields.flag("add_special_tokens"))
        token_ids, _ = await self._ask(engine, tensors)
        description = await engine.description()
        return {"count": len(token_ids), "max_model_len": description.max_seq_len, "tokens": token_ids}

    async def detokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Text of `tokens`.

        Raises:
            ApiError, Unavailable, RelayedError: as for `tokenize`.
        """
        fields = Fields(body)
        fields.refuse_others({"model", "tokens"})
        model = read_model(fields)
        token_ids = read_token_ids(fields.raw("tokens"), "tokens", MAX_PROMPT_TOKENS)
        return {"prompt": await self.text_of(model, token_ids)}

    async def text_of(self, model: str, token_ids: list[int]) -> str:
        """What token ids stand for to what a client calls `model`, special tokens written out.

        Raises:
            ApiError, Unavailable, RelayedError: as for `tokenize`.
        """
        engine, _ = await self._catalogue.find(model)
        tensors = with_prompt(Tensors(), token_ids)
        tensors.flag("skip_special_tokens", False)
        _, text = await self._ask(engine, tensors)
        return text

    async def _ask(self, engine: Engine, tensors: Tensors) -> tuple[tuple[int, ...], str]:
        tensors.flag("tokenize_only")
        tensors.integer("max_tokens", 1)  # the contract wants to know
        request = tensors.request(engine.model, "tokenize", _OUTPUTS)
        async with (
            engine.upstream.lease() as endpoints,
            self._triton.responses(endpoints, request) as responses,
        ):
            async for response in responses:
                outputs = outputs_of(response)
                return all_integers(outputs["output_ids"]), first_text(outputs["text_output"])
        raise ApiError(502, "the model did not answer", code="internal_error")
