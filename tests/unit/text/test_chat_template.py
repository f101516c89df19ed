"""Chat templates, against transformers' own rendering and against what strangers may put into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from support.random_engine import tiny_architecture, tiny_manifest
from support.tokenizers import small_tokenizer
from trierarch.builder.errors import EngineError
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.text.chat_template import MAX_TEMPLATE_LENGTH, ChatTemplate

CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are helpful<|im_end|>
{% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
FEATURES = """{{ bos_token }}{%- set ns = namespace(count=0) -%}
{%- for message in messages %}
  {%- if message.role == 'skip' %}{% continue %}{% endif %}
  {%- if ns.count == 2 %}{% break %}{% endif %}
  {%- set ns.count = ns.count + 1 %}
  {%- if message.role == 'assistant' %}{% generation %}[{{ message.content }}]{% endgeneration %}{% else %}{{ message.content }}{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ messages[0] | tojson }}{{ extra is defined and extra }}"""
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "  Why is the sky blue? <b>&</b> 東京 "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "skip", "content": "no"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "never"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": "<int>"}}}]


@pytest.mark.parametrize("source", [CHATML, FEATURES])
@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_as_transformers_renders(
    source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    ours = ChatTemplate(source, {"bos_token": "<|bos|>"}).render(messages, tools=tools, extra=True)
    theirs = render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=True, bos_token="<|bos|>", extra=True
    )
    assert [ours] == (theirs[0] if isinstance(theirs, tuple) else theirs)


def test_without_generation_prompt() -> None:
    assert not ChatTemplate(CHATML).render(CHATS[1], add_generation_prompt=False).endswith("assistant\n")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages[0].content / 2 }}", "unsupported operand"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxx{% endfor %}{% endfor %}",
            "wrote more than",
        ),
        ("{% for i in range(10**9) %}{% endfor %}", "at most 1048576"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for i in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}", "recursion|steps"),
        ("{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(40) }}", "steps"),
        (
            "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "puts together",
        ),
        (
            "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "puts together",
        ),
        ("{{ 'x' * 999999999 }}", "numbers alone"),
        ("{{ 9 ** 9 ** 9 }}", "at most 64"),
        ("{{ '%999999999d' % 1 }}", "formats no text"),
        ("{{ 'x'.ljust(999999999) }}", "at most 1048576"),
        ("{{ 'x' | center(999999999) }}", "at most 1048576"),
        ("{{ messages | tojson(indent=999999999) }}", "at most 1048576"),
    ],
)
def test_what_a_template_refuses_is_the_callers_error(source: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | no_such_filter }}", "x" * (MAX_TEMPLATE_LENGTH + 1)])
def test_templates_that_no_engine_should_have(source: str) -> None:
    with pytest.raises(EngineError, match=r"chat_template\.jinja"):
        ChatTemplate(source)


def test_the_date_is_todays() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([]).isdigit()


def test_loading_from_an_engine(tmp_path: Path) -> None:
    manifest, tokenizer = tiny_manifest(tiny_architecture()), small_tokenizer("byte_level")
    assert ChatTemplate.load(tmp_path, manifest, tokenizer) is None
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}{{ messages[0].content }}")
    template = ChatTemplate.load(tmp_path, manifest, tokenizer)
    assert template is not None
    assert template.render(CHATS[1]) == tokenizer.token_text(1) + "Be brief."
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(EngineError, match="cannot be read"):
        ChatTemplate.load(tmp_path, manifest, tokenizer)
