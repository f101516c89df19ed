"""What a build for TensorRT-LLM would write and run, as panels for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_TABLES: Final = {
    "pretrained_config": "config.json of the checkpoint",
    "build_config": "TensorRT-LLM's BuildConfig",
    "llm_args": "arguments of LLM",
}


def plan_panels(plan: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A panel for each part of what `builder.tensorrt_llm.build.describe` says."""
    yield Panel(_rows(_summary(plan)), title="engine", title_align="left")
    for key, title in _TABLES.items():
        if plan[key] is not None:
            yield Panel(_rows(flattened(plan[key])), title=title, title_align="left")
    if plan["command"] is not None:
        # In no frame and on one line: it is there to be copied.
        yield Text(plan["command"])


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of nested objects, in their order."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _summary(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    tensor, pipeline = plan["tensor_parallel_size"], plan["pipeline_parallel_size"]
    yield "TensorRT-LLM", f"{plan['tensorrt_llm_version']}, {plan['flow']} flow"
    yield "split over", f"{tensor * pipeline} GPUs: each layer over {tensor}, the layers over {pipeline}"
    yield "quantised", ", ".join(f"{name} {value}" for name, value in plan["quantization"].items())
    if plan["draft"] is not None:
        yield "draft", plan["draft"]
    if plan["adapters"]:
        yield "adapters", ", ".join(plan["adapters"])
    yield "files", ", ".join(plan["files"])


def _rows(rows: Iterator[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table
