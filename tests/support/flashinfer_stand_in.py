"""A stand-in for FlashInfer, which needs a GPU: its names as recorded, by release, and what is documented of them, in torch.

It is strict where the library reads memory unseen: types, shapes, devices, tables, the size of the workspace.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from trierarch.python_backend.executors.torch import flashinfer_library

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data/flashinfer_signatures.json").read_text(encoding="utf-8")
)
VERSIONS: tuple[str, ...] = tuple(RECORDED["releases"])
NUM_PROCESSORS = 132
"""Of the device that it plays."""


def install(monkeypatch: Any, version: str = VERSIONS[-1], wrapper: type | None = None) -> type:
    """Make `import flashinfer` find it until the test ends; the class of its wrappers."""
    module = ModuleType("flashinfer")
    wrapper = wrapper or wrapper_of(version)
    setattr(module, "BatchPrefillWithPagedKVCacheWrapper", wrapper)  # noqa: B010 - a module has no such attribute
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(flashinfer_library, "version", lambda name: version)
    return wrapper


def signature_of(version: str, call: str) -> inspect.Signature:
    """Of `__init__`, `plan` or `run`, without self."""
    kind, parameters = inspect.Parameter.POSITIONAL_OR_KEYWORD, []
    for recorded in RECORDED["releases"][version][call]:
        name, _, default = recorded.partition("=")
        if name.startswith("*"):
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name[1:], inspect.Parameter.VAR_POSITIONAL))
        else:
            value = ast.literal_eval(default) if default else inspect.Parameter.empty
            parameters.append(inspect.Parameter(name, kind, default=value))
    return inspect.Signature(parameters)


def wrapper_of(version: str) -> type[Wrapper]:
    """The class as that release has it."""
    return type("BatchPrefillWithPagedKVCacheWrapper", (Wrapper,), {"version": version})


class Wrapper:
    """BatchPrefillWithPagedKVCacheWrapper: what is used of it; what is not must be left at its default."""

    version: str
    plans: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = self._given("__init__", args, kwargs, {"float_workspace_buffer", "kv_layout", "backend"})
        self._workspace = given["float_workspace_buffer"]
        assert self._workspace.dtype is torch.uint8
        assert self._workspace.dim() == 1
        assert self._workspace.data_ptr() % 16 == 0
        assert given["kv_layout"] == "HND"
        assert given["backend"] == "fa2", "what is recorded of plans is so of this backend"

    def plan(self, *args: Any, **kwargs: Any) -> None:
        """Takes tables on the host, or on the device."""
        used = "causal sm_scale window_left logits_soft_cap q_data_type kv_data_type"
        given = self._given("plan", args, kwargs, set(used.split()))
        device = self._workspace.device
        for name in ("qo_indptr", "paged_kv_indptr", "paged_kv_indices", "paged_kv_last_page_len"):
            assert given[name].dtype is torch.int32, name
            assert given[name].dim() == 1, name
            assert given[name].is_contiguous(), name
            assert given[name].device in (device, torch.device("cpu")), name
        queries, pages = given["qo_indptr"].tolist(), given["paged_kv_indptr"].tolist()
        last = given["paged_kv_last_page_len"].tolist()
        assert len(queries) == len(pages) == len(last) + 1 > 1
        assert queries[0] == pages[0] == 0
        assert pages[-1] == len(given["paged_kv_indices"])
        size = given["page_size"]
        assert all(1 <= one <= size for one in last)
        counts = [until - first for first, until in pairwise(queries)]
        lengths = [(until - first - 1) * size + one for (first, until), one in zip(pairwise(pages), last, strict=True)]
        assert all(1 <= count <= length for count, length in zip(counts, lengths, strict=True)), (
            "causal: no row is empty"
        )
        assert given["causal"] is True
        assert isinstance(given["window_left"], int)
        assert given["window_left"] >= -1
        assert given["logits_soft_cap"] is None or given["logits_soft_cap"] > 0
        assert given["q_data_type"] in (torch.float16, torch.bfloat16)
        assert given["kv_data_type"] is given["q_data_type"]
        assert given["head_dim_qk"] in (64, 128, 256)
        assert given["num_qo_heads"] % given["num_kv_heads"] == 0
        self._check_workspace(given, counts)
        self._plan = given | {"queries": queries, "pages": pages, "lengths": lengths}
        type(self).plans += 1

    def _check_workspace(self, given: dict[str, Any], counts: list[int]) -> None:
        """By the allocations of a plan that shares out as much as it may, in the releases before 0.7.1."""
        heads, kv_heads, dim = given["num_qo_heads"], given["num_kv_heads"], given["head_dim_qk"]
        mean = sum(counts) * (heads // kv_heads) // len(counts)
        rows = 128 if mean > 64 and dim < 256 else 64 if mean > 16 else 16
        programs = 2 * NUM_PROCESSORS // kv_heads
        assert heads * programs * rows * (dim + 1) * 4 <= self._workspace.numel()

    def run(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Requests one after the other, with the probabilities rounded as the kernels round them."""
        given = self._given("run", args, kwargs, {"out"})
        plan, queries, out = self._plan, given["q"], given["out"]
        assert queries.shape == (plan["queries"][-1], plan["num_qo_heads"], plan["head_dim_qk"])
        assert queries.stride(2) == 1
        assert queries.data_ptr() % 16 == queries.stride(0) * queries.element_size() % 16 == 0
        assert isinstance(given["paged_kv_cache"], tuple)
        keys, values = given["paged_kv_cache"]
        assert keys.shape == values.shape
        assert keys.shape[1:] == (plan["num_kv_heads"], plan["page_size"], plan["head_dim_qk"])
        assert keys.stride() == values.stride()
        assert keys.stride(3) == 1
        assert queries.dtype is plan["q_data_type"]
        assert keys.dtype is values.dtype is plan["kv_data_type"]
        assert out.shape == queries.shape
        assert out.dtype is queries.dtype
        assert out.is_contiguous()
        assert len({one.device for one in (queries, keys, values, out, self._workspace)}) == 1
        for index, length in enumerate(plan["lengths"]):
            rows = slice(plan["queries"][index], plan["queries"][index + 1])
            page_ids = plan["paged_kv_indices"][plan["pages"][index] : plan["pages"][index + 1]].long()
            assert page_ids.min() >= 0
            held = [
                pages[page_ids].transpose(0, 1).flatten(1, 2)[:, :length] for pages in (keys, values)
            ]  # (heads, length, dim)
            out[rows] = self._attend(queries[rows], *held)
        return out

    def _attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        plan = self._plan
        count, length = len(queries), keys.shape[1]
        grouped = queries.view(count, len(keys), -1, queries.shape[2]).permute(1, 2, 0, 3)  # (heads, group, count, dim)
        scores = grouped.float() @ keys.float().transpose(1, 2)[:, None] * plan["sm_scale"]
        if plan["logits_soft_cap"] is not None:
            scores = plan["logits_soft_cap"] * torch.tanh(scores / plan["logits_soft_cap"])
        query, key = torch.arange(count)[:, None], torch.arange(length)
        is_seen = key <= length - count + query
        if plan["window_left"] >= 0:
            is_seen &= key + count + plan["window_left"] >= length + query
        weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1).to(queries.dtype)
        return (weights.float() @ values.float()[:, None]).permute(2, 0, 1, 3).flatten(1, 2).to(queries.dtype)

    def _given(self, call: str, args: Any, kwargs: Any, used: set[str]) -> dict[str, Any]:
        signature = signature_of(self.version, call)
        bound = signature.bind(*args, **kwargs)
        required = {name for name, one in signature.parameters.items() if one.default is inspect.Parameter.empty}
        assert bound.arguments.keys() <= required | used, f"{call}: nothing is known here of {bound.arguments.keys()}"
        bound.apply_defaults()
        return dict(bound.arguments)


def broken(change: Callable[[dict[str, Any]], None], version: str = VERSIONS[-1]) -> type[Wrapper]:
    """One that plans something else than it was asked for."""

    def plan(self: Wrapper, *args: Any, **kwargs: Any) -> None:
        Wrapper.plan(self, *args, **kwargs)
        change(self._plan)

    return type("Broken", (Wrapper,), {"version": version, "plan": plan})
