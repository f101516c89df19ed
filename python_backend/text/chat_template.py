"""ChatTemplate: messages → the prompt that a chat model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import CHAT_TEMPLATE_NAME, EngineManifest
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.text.bounded_jinja import BoundedEnvironment, bounded_filter, one_rendering
from trierarch.python_backend.text.chat import Chat
from trierarch.python_backend.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""At least a `role`, usually a `content`; what else it has is between client and template."""

MAX_TEMPLATE_LENGTH: Final = 1 << 20
MAX_PROMPT_LENGTH: Final = 1 << 23
"""Characters that a template may write."""


class ChatTemplate:
    """A checkpoint's Jinja template in a sandbox, with what Hugging Face's templates expect to find around them."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """`special_tokens`: variables such as bos_token. Raise EngineError if the template is too large or wrong."""
        if len(source) > MAX_TEMPLATE_LENGTH:
            raise EngineError(f"{CHAT_TEMPLATE_NAME} has {len(source)} characters: at most {MAX_TEMPLATE_LENGTH}")
        environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = bounded_filter(_tojson)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.globals.update(special_tokens or {})
        try:
            with one_rendering():
                self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise EngineError(f"{CHAT_TEMPLATE_NAME} is not a Jinja template ({error}); repair it") from error

    @classmethod
    def load(cls, engine: Path, manifest: EngineManifest, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The engine's template, or None where it has none. Raise EngineError if it cannot be read."""
        path = engine / CHAT_TEMPLATE_NAME
        if not path.exists():
            return None
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(f"{path} cannot be read ({error}); rebuild the engine with: trierarch build") from error
        tokens = manifest.tokens
        named = {"bos_token": tokens.bos, "eos_token": next(iter(tokens.eos), None), "pad_token": tokens.pad}
        return cls(source, {name: tokenizer.token_text(token_id) for name, token_id in named.items()})

    def prompt(self, chat: Chat) -> str:
        """The prompt of a chat, which may end amid the words of its last message.

        Raises:
            InvalidRequest: as for `render`; or the template does not show the words that are to go on.
        """
        text = self.render(
            chat.messages, tools=chat.tools, add_generation_prompt=chat.add_generation_prompt, **chat.variables
        )
        if not chat.continue_final_message:
            return text
        words = str(chat.messages[-1]["content"]).strip()
        end = text.rfind(words)
        if end < 0:
            raise InvalidRequest(
                "continue_final_message", True, "the model's chat template leaves the last message out"
            )
        return text[: end + len(words)]

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt, special tokens written out: encode it without adding any.

        Raises:
            InvalidRequest: the template refuses the messages, fails on them, takes too long or writes too much.
        """
        context = {**variables, "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        parts, length = [], 0
        try:
            with one_rendering():
                for part in self._template.generate(context):
                    length += len(part)
                    if length > MAX_PROMPT_LENGTH:
                        raise jinja2.TemplateError(f"it wrote more than {MAX_PROMPT_LENGTH} characters")
                    parts.append(part)
        except Exception as error:  # a template is a program of strangers: anything may come out of it
            raise InvalidRequest(
                "messages", messages, f"the model's chat template does not take them: {error}"
            ) from error
        return "".join(parts)


class _Generation(Extension):
    """{% generation %}: marks the assistant's words for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Drop the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: jinja2's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
