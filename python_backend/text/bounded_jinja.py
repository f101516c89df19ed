"""A Jinja environment for programs of strangers: a sandbox whose loops, calls and texts come to an end.

Jinja's sandbox keeps a template from reaching Python's insides. It bounds neither time nor memory: nested loops run for
ever, a string doubled forty times fills the machine. Here every turn of a loop, call and filter is counted, and looks at
the clock; so is every text that is put together. What is left is what one filter does to one value of bounded size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS: Final = 1_000_000
"""Turns of loops, calls and filters in one rendering."""
MAX_SECONDS: Final = 2.0
MAX_CHARACTERS: Final = 1 << 25
"""Put together in one rendering, on the way to the prompt too."""
MAX_NUMBER: Final = 1 << 20
"""In arguments: as a width, an indent or a count it says how much memory is taken."""
MAX_EXPONENT: Final = 64

_EACH: Final = "trierarch_each"
_JOINED: Final = "trierarch_joined"


class _Allowance:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._characters = MAX_CHARACTERS
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        """Count one turn, call or filter. Raise TemplateError where it is one too many."""
        self._steps -= 1
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise jinja2.TemplateError(f"it takes more than {MAX_STEPS} steps, or {MAX_SECONDS:g} s")

    def write(self, count: int) -> None:
        """Count characters. Raise TemplateError where they are too many."""
        self._characters -= count
        if self._characters < 0:
            raise jinja2.TemplateError(f"it puts together more than {MAX_CHARACTERS} characters")


_allowance: Final[ContextVar[_Allowance]] = ContextVar("allowance")


@contextmanager
def one_rendering() -> Iterator[None]:
    """What is compiled or rendered inside shares one allowance."""
    token = _allowance.set(_Allowance())
    try:
        yield
    finally:
        _allowance.reset(token)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compile and render within `one_rendering`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        """`options` are jinja2.Environment's."""
        super().__init__(**options)
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters |= {_EACH: _each, _JOINED: _joined}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Bounding().visit(super()._parse(source, name, filename))
        return template

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call a function, method or macro for a template."""
        _allowance.get().step()
        _check_numbers((*arguments, *named.values()))
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` for a template."""
        if operator == "**":
            _check_numbers((left, right), MAX_EXPONENT)
        elif operator == "%" and isinstance(left, str):
            raise jinja2.TemplateError("% formats no text here; use ~")
        elif operator == "*" and not (isinstance(left, float | int) and isinstance(right, float | int)):
            raise jinja2.TemplateError("* multiplies numbers alone here")
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _allowance.get().write(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


class _Bounding(NodeTransformer):
    """Puts our filters where Jinja compiles to plain Python: around what a loop runs over, and in the place of `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filter(node.iter, _EACH)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED)


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


# Filters that take the context are not worked out when a template is compiled.
@jinja2.pass_context
def _each(context: Context, values: Iterable[Any]) -> Iterator[Any] | Iterable[Any]:
    if isinstance(values, jinja2.Undefined | dict | list | tuple) and not values:
        return values
    return _counted(values)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    allowance = _allowance.get()
    for value in values:
        allowance.step()
        yield value


@jinja2.pass_context
def _joined(context: Context, values: list[Any]) -> str:
    texts = [str(value) for value in values]
    _allowance.get().write(sum(map(len, texts)))
    return "".join(texts)


def bounded_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as a filter that is counted, with numbers in its arguments bounded."""
    return _bounded(function)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # Jinja's own marks on the function go along
    def bounded(*arguments: Any, **named: Any) -> Any:
        allowance = _allowance.get()
        allowance.step()
        first = 2 if hasattr(function, "jinja_pass_arg") else 1
        _check_numbers((*arguments[first:], *named.values()))
        value = function(*arguments, **named)
        if isinstance(value, str):
            allowance.write(len(value))
        return value

    return bounded


def _check_numbers(values: Iterable[Any], most: int = MAX_NUMBER) -> None:
    for value in values:
        if isinstance(value, int | float) and abs(value) > most:
            raise jinja2.TemplateError(f"a number in it is {value:.6g}: at most {most}")
