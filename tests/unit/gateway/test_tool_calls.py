"""What a model writes, told apart into text and calls, however it is cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.orchestrator.gateway.tool_calls import CallDelta, Text, ToolCallParser

NAMES = frozenset({"add", "weather"})
Told = tuple[str, list[tuple[str, str]]]
"""Text, and (name, arguments) of each call."""


def read(pieces: list[str], **options: bool) -> Told:
    parser = ToolCallParser(NAMES, **options)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + [*parser.finish()]
    text = "".join(delta.text for delta in deltas if isinstance(delta, Text))
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        if isinstance(delta, CallDelta) and delta.name is not None:
            assert delta.index == len(calls)
            calls.append((delta.name, ""))
        if isinstance(delta, CallDelta):
            calls[delta.index] = (calls[delta.index][0], calls[delta.index][1] + delta.arguments)
    return text, calls


DEEPSEEK_V3 = (
    'Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Rome"}\n```'
    "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>other\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
DEEPSEEK_V31 = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜>'
    '<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)

CASES: list[tuple[str, Told]] = [
    ("Just words.", ("Just words.", [])),
    ("  \n", ("", [])),
    ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', ("", [("add", '{"a": 1}')])),
    (
        'I add.\n<tool_call>{"name": "add", "arguments": {"a": "}"}}</tool_call>\n<tool_call>{"arguments": {"b": [1, {}]}, '
        + '"name": "weather"}</tool_call>',
        ("I add.\n", [("add", '{"a": "}"}'), ("weather", '{"b": [1, {}]}')]),
    ),
    ('<tool_call>{"name": "other", "arguments": {}}</tool_call> done', (" done", [("other", "{}")])),
    ('<tool_call>{"name": "add", "arguments": {}}</tool_call>\n That is all.\n', ("\n That is all.\n", [("add", "{}")])),
    ('[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {}}]',
     ("", [("add", '{"a": 1}'), ("add", "{}")])),
    ('[TOOL_CALLS]add{"a": {"b": "\\"}"}}[TOOL_CALLS]weather[ARGS]{}',
     ("", [("add", '{"a": {"b": "\\"}"}}'), ("weather", "{}")])),
    ('{"name": "add", "parameters": {"a": 1}}', ("", [("add", '{"a": 1}')])),
    ('<|python_tag|>{"name": "add", "parameters": {"a": 1}}; {"name": "weather", "parameters": {}}',
     ("", [("add", '{"a": 1}'), ("weather", "{}")])),
    ('[{"name": "add", "arguments": {}}]', ("", [("add", "{}")])),
    ('{"name": "Bob", "age": 7}', ('{"name": "Bob", "age": 7}', [])),
    ('{"answer": 7}', ('{"answer": 7}', [])),
    ("[1, 2, 3]", ("[1, 2, 3]", [])),
    ("{ a set }", ("{ a set }", [])),
    ('Use {"name": "add", "parameters": {}}', ('Use {"name": "add", "parameters": {}}', [])),
    ("a < b and <tool and [TOOL", ("a < b and <tool and [TOOL", [])),
    ("<tool_call>no JSON</tool_call>", ("<tool_call>no JSON</tool_call>", [])),
    ("[TOOL_CALLS] is a marker", ("[TOOL_CALLS] is a marker", [])),
    ("<tool_call>", ("<tool_call>", [])),
    ('<tool_call>{"name": "add", "argu', ("", [("add", "")])),
    ('<tool_call>{"name": "add", "arguments": {"a": "cu', ("", [("add", '{"a": "cu')])),
    ("[add(a=1, b=['x', (2, -3.5)]), weather(city=\"Sao\\u0020Paulo)]\", when={'d': None, 't': true})]",
     ("", [("add", '{"a": 1, "b": ["x", [2, -3.5]]}'),
           ("weather", '{"city": "Sao Paulo)]", "when": {"d": null, "t": true}}')])),
    ("<|python_start|>[add()]<|python_end|> Done.", (" Done.", [("add", "{}")])),
    ("<|python_tag|>weather(city='Rome')", ("", [("weather", '{"city": "Rome"}')])),
    ("[add(1)]", ("[add(1)]", [])),
    ("[add(**{'a': 1})]", ("[add(**{'a': 1})]", [])),
    ("[add(a=open('x'))]", ("[add(a=open('x'))]", [])),
    ("[add(a=b'x')]", ("[add(a=b'x')]", [])),
    ("[add(a=1e999)]", ("[add(a=1e999)]", [])),
    ("[add(a=1, a=2)]", ("[add(a=1, a=2)]", [])),
    ("[other(a=1)]", ("[other(a=1)]", [])),
    ("[add(a=1), add(b)] and more", (", add(b)] and more", [("add", '{"a": 1}')])),
    ("[add(a='cut", ("[add(a='cut", [])),
    ("[add](https://add.example)", ("[add](https://add.example)", [])),
    ("I say add(a=1)", ("I say add(a=1)", [])),
    (DEEPSEEK_V3, ("Let me see.", [("weather", '{"city": "Rome"}'), ("other", "{}")])),
    (DEEPSEEK_V31, ("", [("weather", '{"city": "Rome"}'), ("add", '{"a": 1}')])),
    ("<｜tool▁calls▁begin｜>no call", ("<｜tool▁calls▁begin｜>no call", [])),
    ('{"name": "add", "arguments": {"é": "ü\\u00e9"} }', ("", [("add", '{"é": "ü\\u00e9"}')])),
]  # fmt: skip


@pytest.mark.parametrize(("written", "told"), CASES)
def test_at_once(written: str, told: Told) -> None:
    assert read([written]) == told


@given(st.sampled_from(CASES), st.data())
def test_the_same_however_it_is_cut(case: tuple[str, Told], data: st.DataObject) -> None:
    written, told = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    pieces = [written[start:end] for start, end in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert read(pieces) == told
    assert read(list(written)) == told


@given(st.lists(st.sampled_from(['<tool_call>', '</tool_call>', '[TOOL_CALLS]', '{"name": "add", ', '"arguments": ', "{}", "}",
                                 "add", "[", '"', "\\", " ", "x", "<|python_tag|>", "add(", "a=1", ")", "(", "<|python_end|>",
                                 "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "```"])))  # fmt: skip
def test_no_text_breaks_it(parts: list[str]) -> None:
    assert read(parts)[1] == read(["".join(parts)])[1]


def test_arguments_stream_as_they_are_written() -> None:
    parser = ToolCallParser(NAMES)
    list(parser.push('<tool_call>{"name": "add", "arguments": {"text": "abc'))
    assert list(parser.push("def")) == [CallDelta(0, None, "def")]


def test_one_call_where_no_more_are_wanted() -> None:
    written = '<tool_call>{"name": "add", "arguments": {}}</tool_call>' * 2
    assert read([written], are_many=False) == ("", [("add", "{}")])


def test_a_list_of_calls_and_nothing_else() -> None:
    calls = [{"name": "add", "parameters": {"a": [1]}}, {"name": "weather", "parameters": {}}]
    assert read([json.dumps(calls)], is_list=True) == ("", [("add", '{"a": [1]}'), ("weather", "{}")])
